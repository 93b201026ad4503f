"""Parts of the GPU benchmark: seconds of steps, what adaptbs adds to them, what a measurement costs, a slow loader."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from adaptbs.finder.step_timer import QUEUED, train_step
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.timing.device_clock import Stopwatch
from adaptbs.timing.step_time import StepTimes
from benchmarks.common.rows import Rows
from benchmarks.gpu.cells import Cell, LeftOut, Setup
from benchmarks.gpu.tasks import START, Task, as_it_is, loss_of, tasks

WARM_UP, GROUPS = 3, 5  # steps of a size that are not timed, and groups of eight that are
#: How a batch that stays is trained on: arguments of the loader, and whether by `loader.step`; None: without adaptbs.
KINDS: dict[str, tuple[dict[str, Any], bool] | None] = {
    "plain": None,
    "plain again": None,
    "overhead=0": ({"overhead": 0}, False),
    "overhead=0, loader.step": ({"overhead": 0}, True),
    "default": ({}, False),
}


def overhead(setup: Setup) -> Iterator[Cell]:
    """A training run with adaptbs over one without, the batch being held; medians of rounds that take turns."""
    for task in tasks(setup).values():
        yield Cell(task.name, partial(overhead_of, setup, task))


def overhead_of(setup: Setup, task: Task, long: float = 60.0) -> dict[str, Any]:
    """Runs of at least `long` seconds in all of each kind. The first round is left out."""
    rounds, data = 1 if setup.quick else 5, task.rows(setup, (5 if setup.quick else 20) * START)
    steps = 5 if setup.quick else enough_steps(setup, task, data, long / rounds / len(KINDS))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(rounds + 1):
        for kind in list(KINDS) if i % 2 else reversed(list(KINDS)):
            seconds[kind].append(run(setup, task, data, KINDS[kind], steps)[0])
    ratios = {
        kind: [ours / plain for ours, plain in zip(found[1:], seconds["plain"][1:], strict=True)]
        for kind, found in seconds.items()
    }
    return {
        "plain_step_ms": 1e3 * statistics.median(seconds["plain"][1:]) / steps, "steps": steps, "rounds": rounds,
        "ratios": {kind: {"median": statistics.median(r), "all": r} for kind, r in ratios.items()},
    }  # fmt: skip


def enough_steps(setup: Setup, task: Task, data: Rows, seconds: float) -> int:
    """Plain steps that take about so many seconds."""
    run(setup, task, data, None, 20)
    return max(50, math.ceil(20 * seconds / run(setup, task, data, None, 20)[0]))


def run(
    setup: Setup, task: Task, data: Rows, kind: tuple[dict[str, Any], bool] | None, steps: int
) -> tuple[float, Any]:
    """Seconds of so many steps, and the loader that gave the batches."""
    model = task.model(setup)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader: Any = DataLoader(data, START, shuffle=True, collate_fn=as_it_is)
    if kind is not None:
        loader = AdaptiveDataLoader(
            data, START, shuffle=True, collate_fn=as_it_is, model=model, optimizer=optimizer, batch_loss=loss_of,
            epochs=-(-steps * START // len(data)), max_batch_size=START, **kind[0],
        )  # fmt: skip
    setup.wait()
    begin = time.perf_counter()
    for batch in take(loader, steps):
        if kind is not None and kind[1]:
            loader.step(batch)
        else:
            plain_step(model, optimizer, batch)
    setup.wait()
    return time.perf_counter() - begin, loader


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def take(loader: Any, steps: int) -> Iterator[Any]:
    """So many batches, over as many epochs as they need."""
    made = 0
    while made < steps:
        for batch in loader:
            if made < steps:  # an epoch is gone through to its end
                made += 1
                yield batch


def measuring(setup: Setup) -> Iterator[Cell]:
    """What a measurement costs, of each model and source: in steps, and in bytes beyond those of a step."""
    for task in tasks(setup).values():
        for source in ("halves", "in_step"):
            yield Cell(f"{task.name}, {source}", partial(measuring_of, setup, task, source))


def measuring_of(setup: Setup, task: Task, source: str) -> dict[str, Any]:
    steps, data = 5 if setup.quick else 200, task.rows(setup, (5 if setup.quick else 20) * START)
    run(setup, task, data, None, steps)
    plain, peak = peaked(setup, lambda: run(setup, task, data, None, steps))
    kind = {"overhead": 0.5, "source": source}, False
    try:
        (seconds, loader), more = peaked(setup, lambda: run(setup, task, data, kind, steps))
    except ValueError as error:
        if "cannot measure this model" not in str(error):
            raise
        raise LeftOut(str(error)) from error
    made = loader.history.to_dict()["event"].count("measurement")
    step = plain[0] / steps
    return {
        "measurements": made, "step_ms": 1e3 * step, "steps": (seconds - plain[0]) / max(made, 1) / step,
        "bytes": more - peak if more is not None and peak is not None else None,
    }  # fmt: skip


def peaked(setup: Setup, function: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result of a function, and the most bytes in use meanwhile; None on a CPU."""
    if setup.device.type != "cuda":
        return function(), None
    setup.give_back()
    torch.cuda.reset_peak_memory_stats(setup.device)
    return function(), torch.cuda.max_memory_allocated(setup.device)


def step_time(setup: Setup) -> Iterator[Cell]:
    """Seconds of a step by batch size, as queued in training, and the line that adaptbs fits to it, with its errors."""
    for task in tasks(setup).values():
        yield Cell(task.name, partial(step_time_of, setup, task))


def step_time_of(setup: Setup, task: Task) -> dict[str, Any]:
    """t(B) of eight queued steps, beside the fit that a training run comes to by itself."""
    model, times = task.model(setup), StepTimes()
    step = partial(train_step, model, BatchLoss(None, loss_of), torch.optim.AdamW(model.parameters(), 1e-4))
    medians: dict[int, float] = {}
    for size in (16, 32, 64) if setup.quick else (32, 64, 128, 256, 512, 1024):
        data = task.rows(setup, size)
        seconds = timed(setup, step, data.tensors)
        medians[size] = statistics.median(seconds)
        times.add(*[(size, value) for value in seconds for _ in range(QUEUED)])
    fit, fitted = times.fit(), in_training(setup, task, max(medians))
    return {
        "seconds": medians, "fit": repr(fit), "off": off(fit, medians),
        "in_training": repr(fitted), "in_training_off": off(fitted, medians),
    }  # fmt: skip


def timed(setup: Setup, step: Callable[[Any], None], batch: Any) -> list[float]:
    """Seconds of a step: of eight queued ones, some times."""
    watch, seconds = Stopwatch(setup.device), []
    for _ in range(WARM_UP):
        step(batch)
    for _ in range(2 if setup.quick else GROUPS):
        step(batch)  # fills the queue
        begin = watch.mark()
        for _ in range(QUEUED):
            step(batch)
        end = watch.mark()
        watch.wait()
        seconds.append(watch.seconds(begin, end) / QUEUED)
    return seconds


def in_training(setup: Setup, task: Task, most: int) -> Any:
    """t(B) as a run has fitted it, whose batch doubles from 32 up to the largest that was timed."""
    model = task.model(setup)
    optimizer, start = torch.optim.AdamW(model.parameters(), 1e-4), most >> (2 if setup.quick else 5)
    rows = task.rows(setup, most * (10 if setup.quick else 40))
    loader = AdaptiveDataLoader(
        rows, start, collate_fn=as_it_is, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=1,
        budget="epochs", max_batch_size=most,
        target=lambda _, size, progress: min(2 * size, most) if progress < 0.5 else start,
    )  # fmt: skip
    for batch in loader:
        plain_step(model, optimizer, batch)
    return loader.training_run.controller.step_time


def off(fit: Any, medians: dict[int, float]) -> dict[int, float] | None:
    """Relative error of t(B) at each size that was timed."""
    return {size: fit(size) / median - 1 for size, median in medians.items()} if fit else None


class Slow(Rows):
    """Samples that a worker takes a while to make."""

    seconds = 5e-4  # of a sample

    def __getitems__(self, indices: Any) -> Any:
        time.sleep(self.seconds * len(indices))
        return super().__getitems__(indices)


def loader_bound(setup: Setup) -> Iterator[Cell]:
    """A run that waits for its loader: a larger batch saves no time there, so the batch should stay."""
    for workers in (0, 2):
        yield Cell(f"{workers} workers", partial(loader_bound_with, setup, workers))


def loader_bound_with(setup: Setup, workers: int) -> dict[str, Any]:
    task = tasks(setup)["host-bound MLP"]
    made = task.rows(Setup(torch.device("cpu"), setup.quick), 256 if setup.quick else 1 << 15)
    model = task.model(setup)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        Slow(*made.tensors), START, shuffle=True, collate_fn=as_it_is, num_workers=workers, model=model,
        optimizer=optimizer, batch_loss=lambda m, b: loss_of(m, [t.to(setup.device, non_blocking=True) for t in b]),
        epochs=1,
    )  # fmt: skip
    begin = time.perf_counter()
    for batch in loader:
        plain_step(model, optimizer, [t.to(setup.device, non_blocking=True) for t in batch])
    setup.wait()
    decisions = loader.history.decisions()
    return {
        "seconds": time.perf_counter() - begin, "sizes": decisions["batch_size"], "reasons": decisions["reason"],
        "step_time": repr(loader.training_run.controller.step_time),
    }  # fmt: skip
