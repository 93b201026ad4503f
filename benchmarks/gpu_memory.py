"""Training where memory does not suffice: a batch that does not fit, and growth past what fits (parts of `gpu.py`)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from gpu_capacity import MIB, Capacity, CudaCapacity, SimulatedCapacity, capacity_of, since
from gpu_models import Rows, TextModel, Texts, as_fetched, cnn, loss_of, mlp, padded, to
from torch import nn

from adaptbs import AdaptiveDataLoader

EPOCHS = 2
START = 16  # samples, of a run that grows
FAR_TOO_MUCH = 1 << 20  # samples
PIECE = 0.375  # of the batch that does not fit, what does: between a quarter and a half


def survival(dtype: torch.dtype, device: torch.device, quick: bool) -> dict[str, Any]:
    """A batch of which memory holds a good quarter, by loader.step, against the same batches with all the memory."""
    small = device.type == "cpu"
    inputs, width, batch_size = (16, 32, 64) if small else (256, 2048, 8192 if quick else 16384)

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = mlp(inputs, width, 4).to(device, dtype)
        return model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    generator = torch.Generator().manual_seed(1)
    n = 3 * batch_size
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    data = Rows(x, torch.randint(10, (n,), generator=generator))
    capacity = tight(made, data, batch_size, device)
    model, optimizer = made()
    with capacity.limited():
        capacity.holds(model)
        before, begin = capacity.counts(), time.perf_counter()
        loader = AdaptiveDataLoader(
            data, batch_size, shuffle=True, collate_fn=as_fetched, model=model, optimizer=optimizer,
            batch_loss=loss_of, epochs=EPOCHS, target=lambda *_: batch_size, max_batch_size=batch_size,
            lr_scaling="none", overhead=0,
        )  # fmt: skip
        seen: list[list[list[int]]] = []
        for _ in range(EPOCHS):
            seen.append([])
            for batch in loader:
                loader.step(batch)
                seen[-1].append(batch[2].tolist())
        counted, seconds = since(before, capacity), time.perf_counter() - begin
    other, plain = made()
    for indices in (indices for epoch in seen for indices in epoch):
        plain.zero_grad()
        loss_of(other, to(data.__getitems__(indices), device)).backward()
        plain.step()
    return {
        "dtype": str(dtype), "simulated": capacity.simulated, "batch_size": batch_size,
        "sizes": path(len(indices) for epoch in seen for indices in epoch),
        "each_sample_once": all(sorted(i for batch in epoch for i in batch) == list(range(n)) for epoch in seen),
        "out_of_memory_records": loader.history.to_dict()["event"].count("out of memory"), **counted,
        "max_relative_difference": max_relative_difference(model, other), "seconds": seconds,
    }  # fmt: skip


def tight(made: Any, data: Rows, batch_size: int, device: torch.device) -> Capacity:
    """Memory for `PIECE` of the batch, in the middle of what a quarter of it takes and a half."""
    if device.type != "cuda":
        return SimulatedCapacity(int(1000 * PIECE * batch_size), 1000)
    peaks = []
    for size in (batch_size // 4, batch_size // 2):
        model, optimizer = made()

        def step(size: int = size, model: nn.Module = model, optimizer: Any = optimizer) -> None:
            for _ in range(2):
                loss_of(model, to(data.__getitems__(range(size)), device)).backward()
                optimizer.step()
                optimizer.zero_grad()

        peaks.append(CudaCapacity(device, 0).peak(step))
        del model, optimizer, step
    return CudaCapacity(device, sum(peaks) // 2)


def max_relative_difference(model: nn.Module, other: nn.Module) -> float:
    """Over all tensors, the largest difference of an entry, relative to the tensor's largest entry."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def path(sizes: Any) -> list[tuple[int, int]]:
    """(size, how many times in a row) of batches."""
    return [(size, len(list(run))) for size, run in groupby(sizes)]


def out_of_memory(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32, torch.float64):
        yield survival(dtype, device, quick)


def growth(kind: str, by_step: bool, device: torch.device, quick: bool) -> dict[str, Any]:
    """A run whose target asks for far more than memory holds, to its end."""
    small = device.type == "cpu"
    n = 256 if small else 2048 if quick else 4096
    capacity = capacity_of(device, (768 if quick else 1536) * MIB, 100)
    measures = importlib.util.find_spec("scipy") is not None
    torch.manual_seed(0)
    data: Any
    if kind == "text":
        model: nn.Module = TextModel(*((50, 16, 1, 10) if small else (8192, 256, 4, 10))).to(device)
        data, collate = Texts(n, 16 if small else 128, 50 if small else 8192, 10), padded
    else:
        model = cnn(*((4, 1) if small else (64, 4))).to(device)
        data, collate = Rows(torch.randn(n, 3, *([8, 8] if small else [32, 32])), torch.randint(10, (n,))), as_fetched
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    with capacity.limited():
        capacity.holds(model)
        before, begin = capacity.counts(), time.perf_counter()
        loader = AdaptiveDataLoader(
            data, START, shuffle=True, collate_fn=collate, model=model, optimizer=optimizer, batch_loss=loss_of,
            epochs=EPOCHS, target=lambda *_: FAR_TOO_MUCH, max_batch_size=n,
            overhead=0.05 if measures else 0,
        )  # fmt: skip
        seen: list[list[int]] = []
        sizes, last = [], torch.tensor(0.0)
        for _ in range(EPOCHS):
            seen.append([])
            for batch in loader:
                if by_step:
                    last = loader.step(batch)
                else:
                    optimizer.zero_grad()
                    last = loss_of(model, to(batch, device))
                    last.backward()
                    optimizer.step()
                sizes.append(len(batch[0]))
                seen[-1] += batch[2].tolist()
        counted, seconds = since(before, capacity), time.perf_counter() - begin
        memory = loader._controller.memory.memory
        assert memory is not None
        peak, limit = memory.peak(), memory.limit()
    history = loader.history.decisions()
    return {
        "data": kind, "loop": "loader.step" if by_step else "plain", "simulated": capacity.simulated,
        "measures": measures, "finished": True, "last_loss": float(last),
        "each_sample_once": all(sorted(epoch) == list(range(n)) for epoch in seen),
        "sizes": path(sizes), "reasons": {r: history["reason"].count(r) for r in sorted(set(history["reason"]))},
        "out_of_memory_records": history["event"].count("out of memory"), **counted,
        "peak": peak, "limit": limit, "seconds": seconds,
    }  # fmt: skip


def larger_than_memory(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    for kind, by_step in (("text", True), ("images", True), ("images", False)):
        yield growth(kind, by_step, device, quick)
