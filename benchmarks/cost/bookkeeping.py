"""What adaptbs does beside a batch, in microseconds: an epoch's turn, what makes a step undoable, leaving no trace.

    python -m benchmarks.cost.bookkeeping

Processor time of one thread, the shortest of many, since the machine may have other work. Each row has the figure that
it is to stay below. Results go to results/bookkeeping.json. Those of parameter groups are in `benchmarks.cost.groups`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from adaptbs.memory import SafeStep
from adaptbs.model import BatchLoss, Snapshot
from benchmarks.common.machine import save
from benchmarks.cost.counted import Rows

Timed = tuple[str, float, float | None]  # name, microseconds, the most that it is to take, if that is said


def microseconds(work: Callable[[], object], times: int = 100) -> float:
    work()
    shortest = float("inf")
    for _ in range(times):
        begin = time.process_time()
        work()
        shortest = min(shortest, time.process_time() - begin)
    return shortest * 1e6


def linears(n: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(n)))


def epochs(sizes: list[int]) -> Iterator[Timed]:
    """An epoch of two batches over that of a stock loader, by parameters of the model."""
    for n in sizes:
        model = linears(n)
        ours = AdaptiveDataLoader(
            Rows(20), 10, model=model, optimizer=SGD(model.parameters(), 0.1), overhead=0, epochs=10_000,
            max_batch_size=10,
        )  # fmt: skip
        stock = DataLoader(Rows(20), 10)

        def turn(loader: Any) -> Callable[[], None]:
            def work() -> None:
                for _ in loader:
                    pass

            return work

        yield f"an epoch beyond stock's, {n:,} parameters", microseconds(turn(ours)) - microseconds(turn(stock)), 200


def undoable(tensors: list[int], norms: list[int]) -> Iterator[Timed]:
    """What makes a step undoable: by tensors of the model, and by BatchNorms."""
    for n in tensors:
        model = linears(n)
        optimizer = Adam(model.parameters())
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        safe: Any = SafeStep(optimizer, model.parameters)
        for where, careful in (("memory can run out", False), ("that would end the process, as on a CPU", True)):
            limit: Any = SimpleNamespace(memory=SimpleNamespace(careful=careful))
            safe(int, limit)
            name = f"looking after an optimizer step where {where}, {n:,} tensors"
            yield name, microseconds(lambda s=safe, m=limit: s(int, m)), 20 if careful else None
    for n in norms:
        before = Snapshot(nn.Sequential(*(nn.BatchNorm1d(8) for _ in range(n))))
        took = microseconds(lambda b=before: b.take(all_random=False, trained=False))
        yield f"copying what a pass may change, {n:,} BatchNorms", took, 400


def no_trace(norms: list[int]) -> Iterator[Timed]:
    """Leaving a model as it was around a measurement by halves, by BatchNorms."""
    for n in norms:
        model = nn.Sequential(*(nn.BatchNorm1d(8) for _ in range(n)))
        loss = BatchLoss(batch_loss=lambda model, batch: model(batch).sum())

        def leave(loss: BatchLoss = loss, model: nn.Module = model) -> None:
            with loss.preserving(model):
                pass

        yield f"leaving a model as it was at a measurement, {n:,} BatchNorms", microseconds(leave), 5_000


def rows(sizes: list[int], norms: list[int]) -> Iterator[Timed]:
    yield from epochs(sizes)
    yield from undoable(sizes, norms)
    yield from no_trace(norms)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    found = []
    for name, took, most in rows([10, 1_000, 5_000], [10, 200]):
        found.append({"case": name, "us": round(took, 1), "at_most": most})
        print(f"{name:80} {took:8.1f} us" + (f", to be at most {most:,.0f}" if most else ""), flush=True)
    print(save("bookkeeping", {"rows": found}))


if __name__ == "__main__":
    main()
