"""Parts of the GPU benchmark: what fits in memory, and what happens where it does not.

On a CUDA device the process is allowed only a share of the memory, so that it is full soon. On a CPU, which is for
trying this program, memory is simulated (tests/simulated_device.py, tests/helpers/cuda.py).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader, probe_memory
from adaptbs.memory import probe as probing
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.gpu.cells import Cell, Setup
from benchmarks.gpu.models import PRECISIONS, Case, autocast, batch_loss, cases
from tests.simulated_device import OnDevice, SimulatedMemory

ALLOWED = {"cuda": 3 << 30, "cpu": 100_000_000}  # bytes
SIMULATED = 1_000_000  # bytes of a sample
MOST = 1 << 16  # samples
HUGE = 1 << 20  # samples that a target asks for


@contextmanager
def allowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the process have no more than ALLOWED bytes of the device."""
    if device.type != "cuda":
        memory = SimulatedMemory(ALLOWED["cpu"])
        OnDevice(model, memory, SIMULATED)
        with (
            patch("adaptbs.memory.probe.memory_of", lambda *_: memory),
            patch("adaptbs.run.training_run.memory_of", lambda *_: memory),
        ):
            yield
        return
    give_back()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(ALLOWED["cuda"] / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        give_back()


def give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def probe(setup: Setup) -> Iterator[Cell]:
    """The largest batch by `probe_memory` and by bisection down to one sample, of each model and precision."""
    for case in cases(setup.quick).values():
        for precision in PRECISIONS:
            yield Cell(f"{case.name}, {precision}", partial(probe_one, case, precision, setup.device))


def probe_one(case: Case, precision: str, device: torch.device) -> dict[str, Any]:
    model, context = case.model(device), autocast(device, precision)
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(case.data(64), 16)
    with allowed(model, device):
        begin = time.perf_counter()
        found = probe_memory(
            model, None, loader, optimizer=optimizer, batch_loss=batch_loss, autocast=context, max_batch_size=MOST
        )
        between = time.perf_counter()
        largest, tried = bisected(model, BatchLoss(None, batch_loss, context), next(iter(loader)), optimizer)
        end = time.perf_counter()
    size = found.batch_size or 0
    return {
        "found": size, "largest": largest, "shortfall": 1 - size / largest if largest else None,
        "trials": len(found.trials), "ran_out": sum(trial.peak is None for trial in found.trials),
        "seconds": between - begin, "bisection_trials": tried, "bisection_seconds": end - between,
    }  # fmt: skip


def bisected(model: nn.Module, loss: BatchLoss, batch: Any, optimizer: Any) -> tuple[int, int]:
    """The largest size that stays within the limit, found by running as many as it takes; and how many it took."""
    memory = probing.memory_of({p.device for p in model.parameters()})
    assert memory is not None
    low, high, tried = 1, MOST + 1, 0

    def fits(size: int) -> bool:
        return probing.try_size(model, loss, batch, size, memory, optimizer=optimizer).fits

    size = 16
    while low < high - 1:
        tried += 1
        low, high = (size, high) if fits(size) else (low, size)
        size = min(2 * low, MOST) if high == MOST + 1 else (low + high) // 2
    return low, tried


def out_of_memory(setup: Setup) -> Iterator[Cell]:
    """Training whose batches do not fit, run in pieces, against the same where they do: how far apart weights end."""
    for case in cases(setup.quick).values():
        if "BatchNorm" not in case.name:
            yield Cell(case.name, partial(out_of_memory_of, case, setup))


def out_of_memory_of(case: Case, setup: Setup) -> dict[str, Any]:
    weights, events = [], 0
    batch = 2 * bound(case, setup)  # once, since a second search may end a sample beside the first
    for short in (False, True):
        model = case.model(setup.device)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        hold = lambda _, size, __: size  # noqa: E731
        seen, events, _ = train(model, case.data(6 * batch), batch, setup.device, short, hold, exceed_memory=True)
        weights.append(torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()]))
    apart = ((weights[0] - weights[1]).norm() / weights[0].norm()).item()
    return {"batch_size": batch, "ran_out": events, "once_each": seen, "apart": apart}


def bound(case: Case, setup: Setup) -> int:
    """About the largest batch that fits."""
    return int(probe_one(case, "fp32", setup.device)["found"])


def larger_than_memory(setup: Setup) -> Iterator[Cell]:
    """A text and an image model whose target is larger than memory, trained to the end."""
    for name in ("transformer", "CNN with BatchNorm"):
        yield Cell(name, partial(larger_than_memory_of, cases(setup.quick)[name], setup))


def larger_than_memory_of(case: Case, setup: Setup) -> dict[str, Any]:
    fits, model = bound(case, setup), case.model(setup.device)
    target = lambda *_: HUGE  # noqa: E731
    data = case.data(20 * fits)
    seen, events, history = train(model, data, max(fits // 16, 2), setup.device, True, target, max_batch_size=10 * fits)
    return {
        "fits": fits, "largest_run": max(history["batch_size"]), "ran_out": events, "once_each": seen,
        "reasons": sorted({str(reason) for reason in history["reason"]}),
    }  # fmt: skip


def train(
    model: nn.Module, data: Any, batch_size: int, device: torch.device, short: bool, target: Any, **arguments: Any
) -> tuple[bool, int, dict[str, list[Any]]]:
    """An epoch by `loader.step`: whether each sample came once, how often memory ran out, and the decisions."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = torch.zeros(len(data), dtype=torch.int64)

    def run() -> AdaptiveDataLoader:
        loader = AdaptiveDataLoader(
            data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(2), model=model,
            optimizer=optimizer, batch_loss=batch_loss, epochs=1, target=target, budget="epochs",
            **{"max_batch_size": batch_size, **arguments},
        )  # fmt: skip
        for batch in loader:
            seen.index_add_(0, batch[2], torch.ones_like(batch[2]))
            loader.step(batch)
        return loader

    if short:
        with allowed(model, device):
            loader = run()
    else:
        loader = run()
    events = loader.history.to_dict()["event"].count("out of memory")
    return bool((seen == 1).all()), events, loader.history.decisions()
