"""Adaptive batches, and the peers' rules, through AdaptiveDataLoader as its users have it."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adaptbs import AdaptiveDataLoader
from adaptbs.types import NoiseScale
from benchmarks.quality.model_clock import ModelClock, inject
from benchmarks.quality.results import Row, rounded
from benchmarks.quality.rules import STEP_TIMES, Fixed
from benchmarks.quality.tasks import BASE, Task
from benchmarks.quality.training import LOOKS, Watch, as_it_is, epochs_of, order_of, row_of, train

LARGEST = 4096  # samples; and an eighth of the data, which is the package's own limit
PIECES = 100  # of a ramp: how often its target is asked in a run
STATED = Fixed(BASE)


@dataclass(frozen=True)
class Adaptive:
    """A batch that the package sets.

    Attributes:
        start: the first batch.
        stated: what the hyperparameters are stated for.
        clock: name of the modelled step time; "cpu": the run is timed; None: the rule needs no time and measures
            nothing, so that its seconds under any model follow from steps and samples.
        options: of AdaptiveDataLoader.
        patches: constants of the package set otherwise for this run, by their full name.
    """

    name: str
    start: int = BASE
    clock: str | None = "gpu"
    stated: Fixed = STATED
    options: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)


def adaptive_run(task: Task, rule: Adaptive, seed: int) -> Row:
    """Train with the batch that the package sets."""
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, *rule.stated.hyperparameters(task))
    scheduler = task.make_scheduler(optimizer, rule.start)
    with patched(rule.patches):
        loader = AdaptiveDataLoader(
            task.train, rule.start, shuffle=True, generator=order_of(seed), collate_fn=as_it_is,
            model=model, optimizer=optimizer, loss_func=task.loss_func, scheduler=scheduler, epochs=task.epochs,
            base_batch_size=rule.stated.batch_size,
            **({"step_time": tuple(STEP_TIMES["gpu"])} if rule.clock is None else {}), **rule.options,
        )  # fmt: skip
        seconds: Callable[[], float] = lambda: math.nan  # noqa: E731
        if rule.clock in STEP_TIMES:
            clock = ModelClock(STEP_TIMES[rule.clock], seed=seed)
            inject(loader, clock)
            seconds = lambda: clock.seconds  # noqa: E731
        looks = () if rule.clock == "cpu" or not task.watched else LOOKS
        watch = Watch(task, model, lambda: loader.training_run.controller.progress, seconds, looks=looks)
        epochs = (loader for _ in loader.epochs(task.epochs))
        took = timed(lambda: train(task, model, optimizer, scheduler, epochs, watch.step))
    watch.end()
    loader.close()
    row = row_of(task, rule.name, seed, watch)
    if rule.clock is not None:
        row["sizes"] = sizes_of(loader)
    return row | took if rule.clock == "cpu" else row


def fixed_run_timed(task: Task, rule: Fixed, seed: int) -> Row:
    """Train at a fixed batch against the clock."""
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, *rule.hyperparameters(task))
    scheduler = task.make_scheduler(optimizer, rule.batch_size)
    watch = Watch(task, model, lambda: 0.0, looks=())
    epochs = epochs_of(task, rule.batch_size, seed)
    took = timed(lambda: train(task, model, optimizer, scheduler, epochs, watch.step))
    watch.end()
    return row_of(task, rule.name, seed, watch) | took


def article_run(task: Task, batch_size: int, seed: int, fits: int = 3) -> Row:
    """The recipe of the article behind this project: one-cycle fits in a row, the same learning rate for any batch."""
    rule = Fixed(batch_size, transfer=False)
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, task.lr)
    watch = Watch(task, model, lambda: 0.0, looks=())
    seconds = cpu_seconds = 0.0
    for fit in range(fits):
        for group in optimizer.param_groups:
            group["lr"] = task.lr  # (the last fit has left it at its end)
        scheduler = task.make_scheduler(optimizer, batch_size)
        epochs = epochs_of(task, batch_size, 1000 * fit + seed)
        took = timed(lambda s=scheduler, e=epochs: train(task, model, optimizer, s, e, watch.step))
        seconds, cpu_seconds = seconds + took["seconds"], cpu_seconds + took["cpu_seconds"]
        watch.end()
    row = row_of(task, rule.name, seed, watch)
    return row | {"seconds": rounded(seconds), "cpu_seconds": rounded(cpu_seconds)}


def timed(work: Callable[[], None]) -> dict[str, float | None]:
    """Seconds on the wall and of the processor; the second do not notice what else the machine does."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {"seconds": rounded(time.perf_counter() - wall), "cpu_seconds": rounded(time.process_time() - processor)}


def sizes_of(loader: AdaptiveDataLoader) -> list[tuple[float | None, int]]:
    """(progress, batch size) wherever the size changed."""
    changes: list[tuple[float | None, int]] = []
    decided = loader.history.decisions()
    for progress, size in zip(decided["progress"], decided["batch_size"], strict=True):
        if not changes or changes[-1][1] != size:
            changes.append((rounded(progress, 3), size))
    return changes


@contextmanager
def patched(values: Mapping[str, Any]) -> Iterator[None]:
    """Set module constants by their full names, such as adaptbs.decision.policy.PACE, and put them back.

    Raises:
        AttributeError: for a name that is not there: a patch that has no effect would pass for a result.
    """
    places = [(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in values]
    before = [getattr(module, attribute) for module, attribute in places]
    try:
        for (module, attribute), value in zip(places, values.values(), strict=True):
            setattr(module, attribute, value)
        yield
    finally:
        for (module, attribute), value in zip(places, before, strict=True):
            setattr(module, attribute, value)


def ramp(start: int, mean: float, largest: int) -> Callable[[NoiseScale | None, int, float], float]:
    """A target that grows exponentially in progress and asks no signal, samples / steps of its run being `mean`.

    Args:
        start: the first batch, samples.
        mean: of a run's batches, samples / steps, at least `start`.
        largest: never exceeded, samples.
    """
    low, high = 1.0, 1e200  # (a steep one spends most of the run at the largest)
    for _ in range(100):
        ratio = math.sqrt(low * high)
        low, high = (ratio, high) if mean_batch(start, ratio, largest) < mean else (low, ratio)
    return lambda noise_scale, batch_size, progress: ramp_size(start, ratio, progress, largest)


def ramp_size(start: int, ratio: float, progress: float, largest: int) -> int:
    """start ratio^p."""
    return min(round(start * ratio**progress), largest)


def mean_batch(start: int, ratio: float, largest: int) -> float:
    """Samples / steps of a ramp that is asked `PIECES` times: the harmonic mean of its sizes."""
    return PIECES / sum(1 / ramp_size(start, ratio, piece / PIECES, largest) for piece in range(PIECES))
