"""`probe_memory` against bisection by real steps in the same process, under the same limit (a part of `gpu.py`).

Bisection takes it that every size below one that fits fits as well. It looks at whole steps, the optimizer's included,
twice each, on a model of its own, with nothing kept of the size before; a size fits where both stay within the limit
that `probe_memory` went by. `runs` is the largest that did not raise at all, beyond that limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_capacity import MIB, Capacity, capacity_of, since
from gpu_models import PRECISIONS, Case, as_fetched, autocast, cases, loss_of
from torch.utils.data import DataLoader

from adaptbs import probe_memory
from adaptbs.gradients.batches import repeated
from adaptbs.gradients.batch_loss import BatchLoss

START = 16  # samples of the loader's batches, far from what fits
CAPACITY, QUICK_CAPACITY = 3072 * MIB, 1536 * MIB
MOST = 1 << 20  # samples


def bisection(fits: Callable[[int], bool]) -> tuple[int, int]:
    """The largest size that fits, 0 for none, and how many were tried."""
    low, high, tried = 0, 1, 0
    while high <= MOST:
        tried += 1
        if not fits(high):
            break
        low, high = high, 2 * high
    while high - low > 1:
        middle, tried = (low + high) // 2, tried + 1
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, tried


def by_bisection(case: Case, precision: str, capacity: Capacity, device: torch.device, limit: int) -> dict[str, Any]:
    model, loss = case.model(device), BatchLoss(None, loss_of, autocast(device, precision))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    capacity.holds(model)
    data = case.data(START).__getitems__(range(START))
    peaks: dict[int, int | None] = {}

    def step(size: int) -> None:
        batch = repeated(data, size)
        for _ in range(2):
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    def within(size: int) -> bool:
        if size not in peaks:
            peaks[size] = capacity.peak(lambda: step(size))
            optimizer.zero_grad()  # (of a step that ran out half way)
        peak = peaks[size]
        return peak is not None and peak <= limit


    capacity.peak(lambda: step(1))  # what the optimizer keeps, and handles of libraries, are made here
    begin = time.perf_counter()
    largest, tried = bisection(within)
    return {
        "bisection": largest, "bisection_trials": tried, "bisection_s": time.perf_counter() - begin,
        "runs": max((size for size, peak in peaks.items() if peak is not None), default=0),
    }  # fmt: skip


def compare(case: Case, precision: str, device: torch.device, bytes_held: int) -> dict[str, Any]:
    capacity = capacity_of(device, bytes_held, 1000)
    with capacity.limited():
        model = case.model(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        capacity.holds(model)
        loader = DataLoader(case.data(8 * START), START, collate_fn=as_fetched)
        before, begin = capacity.counts(), time.perf_counter()
        found = probe_memory(
            model, None, loader, optimizer=optimizer, batch_loss=loss_of,
            autocast=autocast(device, precision), max_batch_size=MOST,
        )  # fmt: skip
        seconds, counted = time.perf_counter() - begin, since(before, capacity)
        del model, optimizer
        truth = by_bisection(case, precision, capacity, device, found.limit)
    size = found.batch_size or 0
    return {
        "model": case.name, "precision": precision, "simulated": capacity.simulated, "limit": found.limit,
        "found": found.batch_size, **truth,
        "shortfall": 1 - size / truth["bisection"] if truth["bisection"] else None,
        "trials": [{"batch_size": t.batch_size, "peak": t.peak, "fits": t.fits} for t in found.trials],
        "ran_out": sum(t.peak is None for t in found.trials), **counted, "seconds": seconds,
    }  # fmt: skip


def part(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    for case in cases(small=device.type == "cpu"):
        for precision in PRECISIONS:
            yield compare(case, precision, device, QUICK_CAPACITY if quick else CAPACITY)
