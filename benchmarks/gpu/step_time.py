"""Parts of the GPU benchmark: what adaptbs adds to the time of a step, and steps' times by batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.finder.step_timer import train_step
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.timing.clock import Stopwatch
from adaptbs.timing.step_time import StepTimes
from benchmarks.gpu.memory import give_back
from benchmarks.gpu.models import Case, batch_loss, cases

BATCH_SIZE = 64
WARM_UP, TIMED = 3, 8  # steps of a size
#: How a batch that stays is trained on: arguments of the loader, and whether by `loader.step`; None: without adaptbs.
KINDS: dict[str, tuple[dict[str, Any], bool] | None] = {
    "plain": None,
    "plain again": None,
    "overhead=0": ({"overhead": 0}, False),
    "overhead=0, loader.step": ({"overhead": 0}, True),
    "default": ({}, False),
}


def overhead(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """A training run with adaptbs over one without, the batch being held; medians of rounds that take turns."""
    rounds, steps = (2, 20) if quick else (7, 400)
    rows = []
    for case in cases(quick).values():
        data = TensorDataset(*(t.to(device) for t in (case.data(BATCH_SIZE * 20).inputs, case.data(20 * 64).labels)))
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for i in range(rounds + 1):
            for kind in list(KINDS) if i % 2 else reversed(list(KINDS)):
                seconds[kind].append(run(case, data, KINDS[kind], steps, device))
        ratios = {
            kind: [ours / plain for ours, plain in zip(found[1:], seconds["plain"][1:], strict=True)]
            for kind, found in seconds.items()
        }
        step = statistics.median(seconds["plain"][1:]) / steps
        rows.append({
            "model": case.name, "plain_step_ms": 1e3 * step, "steps": steps, "rounds": rounds,
            "ratios": {kind: {"median": statistics.median(r), "all": r} for kind, r in ratios.items()},
        })  # fmt: skip
    return rows


def run(
    case: Case, data: TensorDataset, kind: tuple[dict[str, Any], bool] | None, steps: int, device: torch.device
) -> float:
    """Seconds of so many steps."""
    model = case.model(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader: Any = DataLoader(data, BATCH_SIZE, shuffle=True)
    by_step = kind is not None and kind[1]
    if kind is not None:
        loader = AdaptiveDataLoader(
            data, BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer, batch_loss=batch_loss,
            epochs=-(-steps * BATCH_SIZE // len(data)), max_batch_size=BATCH_SIZE, **kind[0],
        )  # fmt: skip
    wait(device)
    begin = time.perf_counter()
    for batch in take(loader, steps):
        if by_step:
            loader.step(batch)
            continue
        batch_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    return time.perf_counter() - begin


def take(loader: Any, steps: int) -> Iterator[Any]:
    """So many batches, over as many epochs as they need."""
    made = 0
    while made < steps:
        for batch in loader:
            if made < steps:  # (an epoch is gone through to its end)
                made += 1
                yield batch


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_time(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Seconds of a step by batch size, by the device's own clock, and the line that adaptbs fits."""
    rows = []
    for case in cases(quick).values():
        model, times = case.model(device), StepTimes()
        step = partial(train_step, model, BatchLoss(None, batch_loss), torch.optim.AdamW(model.parameters(), 1e-4))
        medians: dict[int, float] = {}
        for size in (16, 32, 64) if quick else (32, 64, 128, 256, 512, 1024, 2048, 4096):
            seconds = timed(step, batch(case, size, device), device)
            medians[size] = statistics.median(seconds)
            for value in seconds:
                times.add((size, value))
        fit = times.fit()
        rows.append({
            "model": case.name, "seconds": medians, "fit": repr(fit),
            "off": {size: fit(size) / median - 1 for size, median in medians.items()} if fit else None,
        })  # fmt: skip
        give_back()
    return rows


def batch(case: Case, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    made = case.data(size)
    return made.inputs.to(device), made.labels.to(device)


def timed(step: Callable[[Any], None], on: Any, device: torch.device) -> list[float]:
    """Seconds of a few steps, warmed up."""
    watch, seconds = Stopwatch(device), []
    for i in range(WARM_UP + TIMED):
        begin = watch.mark()
        step(on)
        end = watch.mark()
        watch.wait()
        if i >= WARM_UP:
            seconds.append(watch.seconds(begin, end))
    return seconds
