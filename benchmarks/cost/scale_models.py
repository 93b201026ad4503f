"""Costs against the size of a model and the length of a run; rows of `benchmarks.cost.scale`."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.in_step import InStep
from adaptbs.model import BatchLoss
from benchmarks.common.live_bytes import peak_bytes
from benchmarks.cost.counted import Row, Rows, calls, saved

BATCH = 8


def parameters(sizes: list[int]) -> Iterator[Row]:
    """A measurement of a model with many parameters: memory beyond the step's, and the loader's state."""
    beyond: dict[str, dict[int, float]] = {
        "in the step, the first, which is checked": {}, "in the step": {}, "by halves, before the step": {}
    }  # fmt: skip
    files = {}
    for n in sizes:
        width = math.isqrt(n // 2)
        model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        x = torch.randn(BATCH, width)
        loss = BatchLoss(batch_loss=lambda model, batch: model(batch).square().mean())
        watch, halves = InStep(model), HalfBatches(model, loss)

        def step(model: nn.Module = model, loss: BatchLoss = loss, x: torch.Tensor = x) -> None:
            loss(model, x).backward()

        def measured(step: Callable[[], None] = step, watch: InStep = watch) -> None:
            watch.arm(BATCH)
            step()
            watch.norms()
            watch.disarm()

        plain = peak_of(step, model)
        beyond["in the step, the first, which is checked"][n] = peak_of(measured, model) - plain
        peak_of(measured, model)  # the second is checked as well
        beyond["in the step"][n] = peak_of(measured, model) - plain
        beyond["by halves, before the step"][n] = peak_of(lambda halves=halves, x=x: halves.measure(x), model)
        optimizer = SGD(model.parameters(), 0.1)
        loader = AdaptiveDataLoader(Rows(100), 10, model=model, optimizer=optimizer, epochs=2, step_time=(1e-3, 1e-6))
        next(iter(loader))
        files[n] = saved(loader.state_dict())
        del loader, optimizer, model, watch, halves, step, measured
        gc.collect()
    for source, bytes_ in beyond.items():
        yield Row(f"most memory of a measurement {source}", "parameters", "bytes", bytes_)
    yield Row("file of a state", "parameters", "bytes", files)


def peak_of(function: Callable[[], object], model: nn.Module) -> int:
    """The most bytes of tensors alive at once, beside the model's own."""
    model.zero_grad()
    return peak_bytes(function, model.parameters())


def batch_norms(sizes: list[int]) -> Iterator[Row]:
    """Leaving a model as it was at a measurement, once it has been looked up."""
    entered = {}
    for n in sizes:
        model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(n)))
        loss = BatchLoss(batch_loss=lambda model, batch: model(batch).sum())

        def leave(model: nn.Module = model, loss: BatchLoss = loss) -> None:
            with loss.preserving(model):
                pass

        leave()
        entered[n] = calls(leave)
    yield Row("to leave a model as it was at a measurement", "BatchNorms", "calls", entered)


def measured_run(numbers: list[int]) -> Iterator[Row]:
    """A measured run of steps of a millisecond, by a given clock: what it keeps, and calls a step at its end."""
    kept, entered = {}, {}
    for n in numbers:
        model = nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), 1e-9)
        loader = AdaptiveDataLoader(
            Rows(2 * n), 2, model=model, optimizer=optimizer, epochs=1, max_batch_size=2, step_time=(1e-3, 1e-6),
        )  # fmt: skip
        gc.collect()
        tracemalloc.start()
        batches = iter(loader)

        def step(batches: Iterator[torch.Tensor] = batches, model: nn.Module = model, opt: SGD = optimizer) -> bool:
            batch = next(batches, None)
            if batch is None:
                return False
            (model(batch) - 1).square().mean().backward()
            opt.step()
            opt.zero_grad()
            return True

        for _ in range(n - 1_000):
            step()
        kept[n] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        entered[n] = sum(calls(step) for _ in range(1_000)) / 1_000
    yield Row("kept by a run that measures", "steps", "bytes", kept)
    yield Row("to make a step, in the mean over the last 1,000", "steps", "calls", entered)
