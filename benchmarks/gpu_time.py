"""What adaptbs adds to a run's time, what loader.step does, and t(B) by CUDA events (parts of `gpu.py`)."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_models import PRECISIONS, Case, as_fetched, autocast, cases, loss_of, to
from torch import nn
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from adaptbs.clock import Stopwatch
from adaptbs.gradients.batch_loss import BatchLoss
from adaptbs.gradients.batches import repeated
from adaptbs.left_as_found import Before
from adaptbs.out_of_memory import is_out_of_memory
from adaptbs.step_time import WARM_UP, StepTime, StepTimes, _line  # (the line it would draw, also where it does not)
from adaptbs.step_timer import train_step

BATCH_SIZE = 64
EPOCHS = 2
KINDS: dict[str, float | None] = {"plain": None, "control": None, "overhead 0": 0.0, "overhead 0.05": 0.05}
STEPS = {"MLP": 600, "CNN, BatchNorm": 150}  # of a run: each takes about a second
LONGEST = 0.1  # seconds of a step, after which no larger one is timed
TIMED = 12  # steps of each size


def stay(noise_scale: Any, batch_size: int, progress: float) -> int:
    """A target that holds the batch, and has all that it has paid for measured."""
    return batch_size


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trained(case: Case, data: Any, device: torch.device, overhead: float | None, by_step: bool = False) -> float:
    """Seconds of a run; overhead None is without adaptbs."""
    model = case.model(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    synchronize(device)
    begin = time.perf_counter()
    loader: Any
    if overhead is None:
        loader = DataLoader(data, BATCH_SIZE, shuffle=True, collate_fn=as_fetched)
    else:
        loader = AdaptiveDataLoader(
            data, BATCH_SIZE, shuffle=True, collate_fn=as_fetched, model=model, optimizer=optimizer,
            batch_loss=loss_of, epochs=EPOCHS, max_batch_size=BATCH_SIZE, target=stay, overhead=overhead,
        )  # fmt: skip
    for _ in range(EPOCHS):
        for batch in loader:
            if by_step:
                loader.step(batch)
            else:
                loss_of(model, to(batch, device)).backward()
                optimizer.step()
                optimizer.zero_grad()
    synchronize(device)
    return time.perf_counter() - begin


def in_rounds(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, by round, in an order drawn anew in each; the first, to warm up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in random.sample(list(runs), len(runs)):
            took = runs[name]()
            if i:
                seconds[name].append(took)
    return seconds


def compared(seconds: dict[str, list[float]], base: str, steps: int) -> dict[str, dict[str, Any]]:
    """Each over `base` of the same round: the median ratio, all of them, and what a step has more in microseconds."""
    found = {}
    for name, took in seconds.items():
        if name == base:
            continue
        ratios = [t / b for t, b in zip(took, seconds[base], strict=True)]
        more = statistics.median(1e6 * (t - b) / steps for t, b in zip(took, seconds[base], strict=True))
        found[name] = {"ratio": statistics.median(ratios), "rounds": ratios, "more_us_a_step": more}
    return found


def overhead(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Where SciPy is missing only without measuring."""
    small, rounds = device.type == "cpu", 2 if quick else 6
    measures = importlib.util.find_spec("scipy") is not None
    for case in cases(small):
        if case.name not in STEPS:
            continue
        steps = 40 if small else STEPS[case.name] // (4 if quick else 1)
        data = case.data(steps * BATCH_SIZE // EPOCHS)

        def run(overhead: float | None, by_step: bool = False, case: Case = case, data: Any = data) -> float:
            return trained(case, data, device, overhead, by_step)

        kinds = {name: share for name, share in KINDS.items() if measures or not share}
        took = in_rounds({name: (lambda share=share, run=run: run(share)) for name, share in kinds.items()}, rounds)
        step_ms = 1000 * statistics.median(took["plain"]) / steps
        yield {
            "model": case.name, "compared": "a run with adaptbs in place, over a plain one", "measures": measures,
            "steps": steps, "step_ms": step_ms, **compared(took, "plain", steps),
        }  # fmt: skip
        lines = {"three lines": lambda run=run: run(0.0), "loader.step": lambda run=run: run(0.0, True)}
        yield {
            "model": case.name, "compared": "loader.step over three lines, both with overhead=0", "steps": steps,
            **compared(in_rounds(lines, rounds), "three lines", steps), "before_us": before_us(case, device),
        }  # fmt: skip


def before_us(case: Case, device: torch.device, times: int = 200) -> float:
    """Microseconds of what loader.step keeps of a model's buffers and the random states before each step."""
    model = case.model(device)
    for _ in range(10):
        Before(model)
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        Before(model)
    synchronize(device)
    return 1e6 * (time.perf_counter() - begin) / times


def timed(case: Case, precision: str, device: torch.device, most: int) -> dict[int, list[float]]:
    """Seconds of steps by batch size, powers of 2, as far as they are quick and fit; by events on CUDA."""
    model, loss = case.model(device), BatchLoss(None, loss_of, autocast(device, precision))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    watch, data = Stopwatch(device), to(case.data(64).__getitems__(range(64)), device)
    found: dict[int, list[float]] = {}
    size = 2
    while size <= most:
        try:
            found[size] = _seconds(model, loss, optimizer, repeated(data, size), watch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if statistics.median(found[size]) > LONGEST:
            break
        size *= 2
    return found


def _seconds(model: nn.Module, loss: BatchLoss, optimizer: Any, batch: Any, watch: Stopwatch) -> list[float]:
    for _ in range(WARM_UP):
        train_step(model, loss, optimizer, batch)
    watch.wait()
    marks = [watch.mark()]
    for _ in range(TIMED):
        train_step(model, loss, optimizer, batch)
        marks.append(watch.mark())
    watch.wait()
    return [watch.seconds(a, b) for a, b in zip(marks, marks[1:], strict=False)]


def fitted(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """adaptbs' fit of these steps; how far a line is off each median, relative, whether or not it is what was fitted."""
    times = StepTimes()
    for _ in range(WARM_UP):  # which it leaves out: these have been
        times.add(1, 0.0)
    for size, took in seconds.items():
        for each in took:
            times.add(size, each)
    fit, sizes = times.fit(), list(seconds)
    medians = [statistics.median(took) for took in seconds.values()]
    row: dict[str, Any] = {"sizes": sizes, "median_ms": [1000 * m for m in medians], "fit": type(fit).__name__}
    if fit is None:
        return row
    line = fit if isinstance(fit, StepTime) else _line(sizes, torch.tensor(medians).double().numpy())
    off = [line(size) / median - 1 for size, median in zip(sizes, medians, strict=True)]
    return row | {"line": {"a": line.a, "b": line.b}, "residuals": off, "worst_residual": max(map(abs, off))}


def step_time(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    most = 64 if device.type == "cpu" else 1024 if quick else 1 << 15
    for case in cases(small=device.type == "cpu"):
        for precision in PRECISIONS:
            row = fitted(timed(case, precision, device, most))
            by = "CUDA events" if device.type == "cuda" else "the host's clock"
            yield {"model": case.name, "precision": precision, "timed_by": by, **row}
