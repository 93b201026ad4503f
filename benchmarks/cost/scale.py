"""Cost against size: more samples, more parameters, more batches, more loaders. Bytes, calls and objects, not seconds.

    python -m benchmarks.cost.scale [--only WORD ...]

Each row is one cost at growing sizes, and its law: the power of the size with which the cost grew between the two
largest. Bytes are of Python's objects and of tensors that were made meanwhile, added. They are counted and depend on no
other load of the machine. The worst rows come first. They go to results/scale.json.
"""

from __future__ import annotations

import argparse
import gc
import math
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Generator, nn
from torch.optim import SGD
from torch.utils.data import RandomSampler, WeightedRandomSampler

from adaptbs import AdaptiveDataLoader
from benchmarks.common.machine import save
from benchmarks.cost import scale_models
from benchmarks.cost.collectives import STEPS, of_an_epoch
from benchmarks.cost.counted import Placed, Row, Rows, Stream, Unknown, calls, counting_bytes, saved


def loader_of(data: Any, batch_size: int = 10, model: nn.Module | None = None, **how: Any) -> AdaptiveDataLoader:
    """A loader whose batch stays, and that measures nothing."""
    model = nn.Linear(4, 1) if model is None else model
    how = {"epochs": 2, "overhead": 0, "max_batch_size": batch_size} | how
    return AdaptiveDataLoader(data, batch_size, model=model, optimizer=SGD(model.parameters(), 0.1), **how)


Order = Callable[[int], dict[str, Any]]
ORDERS: dict[str, Order] = {
    "sequential": lambda n: {},
    "shuffled": lambda n: {"shuffle": True},
    "shuffled by a generator of the user's": lambda n: {"shuffle": True, "generator": Generator().manual_seed(1)},
    "shuffled, 2 ranks": lambda n: {
        "shuffle": True, "generator": Generator().manual_seed(1), "rank": 0, "world_size": 2, "step_time": (1e-3, 1e-6)
    },
    "sequential, 2 ranks": lambda n: {"rank": 0, "world_size": 2, "step_time": (1e-3, 1e-6)},
    "1,000 of them, drawn with replacement": lambda n: {"sampler": RandomSampler(range(n), True, 1000)},
    "weighted": lambda n: {"sampler": WeightedRandomSampler(torch.ones(n), n)},
    "another sampler": lambda n: {"sampler": Unknown(n)},
}  # fmt: skip
RUNS = 4  # of each length, where what a run keeps is measured
ENDLESS = {"sequential", "sequential, 2 ranks", "1,000 of them, drawn with replacement"}


def states(sizes: list[int], most: int) -> Iterator[Row]:
    """Save in mid-epoch, and load: the file, and the bytes that making and loading it take."""
    for order, how in ORDERS.items():
        files, making, loading, beginning = {}, {}, {}, {}
        for n in [*sizes, most] if order in ENDLESS else sizes:
            with counting_bytes() as counted:
                loader = loader_of(Rows(n), **how(n))
                batches = iter(loader)
                list(islice(batches, 10))
            beginning[n] = counted.bytes
            with counting_bytes() as counted:
                state = loader.state_dict()
            making[n], files[n] = counted.bytes, saved(state)
            again = loader_of(Rows(n), **how(n))
            with counting_bytes() as counted:
                again.load_state_dict(state)
                next(iter(again))
            loading[n] = counted.bytes
        yield Row(f"file of a state in mid-epoch: {order}", "samples", "bytes", files)
        yield Row(f"to make it: {order}", "samples", "bytes", making)
        yield Row(f"to load it, with the next batch: {order}", "samples", "bytes", loading)
        yield Row(f"to build a loader and deliver 10 batches: {order}", "samples", "bytes", beginning)


def streams(batches: list[int]) -> Iterator[Row]:
    """A stream: its state, and what is read again to go on."""
    for name, kind in (("a stream", Stream), ("a stream with state_dict()", Placed)):
        files, read = {}, {}
        for n in batches:
            loader = loader_of(kind(20 * n))
            underway = iter(loader)
            list(islice(underway, n))
            state = loader.state_dict()
            files[n] = saved(state)
            data = kind(20 * n)
            again = loader_of(data)
            again.load_state_dict(state)
            next(iter(again))
            read[n] = data.read
        yield Row(f"file of a state in mid-epoch: {name}", "batches delivered", "bytes", files)
        yield Row(f"read for the next batch of a resumed run: {name}", "batches delivered", "samples", read)


def parameters(sizes: list[int]) -> Iterator[Row]:
    """An epoch of a model with many parameters: calls and hooks."""
    entered, hooks, epochs = {}, {}, {}
    for n in sizes:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(n // 2)))
        loader = loader_of(Rows(100), model=model)

        def begin(loader: AdaptiveDataLoader = loader) -> None:
            next(iter(loader))

        entered[n] = calls(begin)
        batches = iter(loader)
        next(batches)
        hooks[n] = sum(bool(getattr(p, "_post_accumulate_grad_hooks", None)) for p in model.parameters())
        epochs[n] = calls(lambda batches=batches: list(batches))
    yield Row("to begin an epoch", "parameters", "calls", entered)
    yield Row("hooks at an epoch's beginning", "parameters", "hooks", hooks)
    yield Row("the other 9 batches of an epoch of 10, and its end", "parameters", "calls", epochs)


def growth(sizes: list[int]) -> Iterator[Row]:
    """Batches of other sizes in one run: calls from one to the next."""
    entered = {}
    wanted = iter([1, *sizes, *[sizes[-1]] * 99])
    loader = loader_of(
        Rows(8 * sum(sizes)), 1, max_batch_size=sizes[-1], decide_every=1e-9, target=lambda *_: next(wanted),
        collate_fn=len,
    )  # fmt: skip
    batches = iter(loader)
    while sizes[-1] not in entered:
        length = 0

        def step() -> None:
            nonlocal length
            length = next(batches)

        made = calls(step)
        if length in sizes[1:]:  # no decision comes before the first
            entered.setdefault(length, made)
    yield Row("from one batch to the next, with a decision", "samples a batch", "calls", entered)


def loaders(numbers: list[int]) -> Iterator[Row]:
    """Loaders in one process, without the garbage collector: what each leaves behind."""
    model, data = nn.Linear(4, 1), Rows(20)
    objects, kept = {}, {}
    optimizer = SGD(model.parameters(), 0.1)

    def one() -> None:
        for batch in AdaptiveDataLoader(data, 10, model=model, optimizer=optimizer, overhead=0, epochs=1):
            model(batch).sum().backward()
            optimizer.step()

    for _ in range(3):
        one()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
        for n in range(1, max(numbers) + 1):
            one()
            if n in numbers:
                objects[n] = len(gc.get_objects()) - before[0]
                gc.collect()  # empties Python's lists of memory to use again, which are no loader's
                kept[n] = (tracemalloc.get_traced_memory()[0] - before[1]) / n
    finally:
        tracemalloc.stop()
        gc.enable()
    yield Row("left behind, the collector being off", "loaders made and dropped", "objects", objects)
    yield Row("left behind by each after a collection", "loaders made and dropped", "bytes", kept)


def run_length(numbers: list[int]) -> Iterator[Row]:
    """Steps of one run, without the garbage collector: bytes that it keeps, the least of a few runs.

    Python's lists of memory to use again take some thousand bytes more or less from run to run.
    """
    kept = {}
    for n in numbers * RUNS:
        loader = loader_of(Rows(n), 1, collate_fn=len)
        gc.collect()
        tracemalloc.start()
        for _ in loader:
            pass
        kept[n] = min(tracemalloc.get_traced_memory()[0], kept.get(n, math.inf))
        tracemalloc.stop()
        del loader
    yield Row("kept by a run that measures nothing", "steps", "bytes", kept)


def ranks(sizes: list[int]) -> Iterator[Row]:
    """Several processes: what one of them exchanges with the others."""
    for said, overhead in (("measured", 0.05), ("overhead=0", 0.0)):
        counts = {n: of_an_epoch(n, overhead) for n in sizes}
        epoch = f"exchanged in an epoch of {STEPS} steps, {said}"
        yield Row(epoch, "ranks", "collectives", {n: made["calls"] for n, made in counts.items()})
        yield Row(f"{epoch}, given by each", "ranks", "bytes", {n: made["bytes"] for n, made in counts.items()})


def fastai(orders: list[int], fits: list[int]) -> Iterator[Row]:
    """Rows that need fastai, whose import takes seconds."""
    from benchmarks.cost import scale_fastai

    yield from scale_fastai.order(orders)
    yield from scale_fastai.fits(fits)


def rows(*, full: bool = True, only: tuple[str, ...] = ()) -> list[Row]:
    """All rows, the worst first; smaller sizes unless `full`."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "states": lambda: states([1_000, 100_000, 1_000_000] if full else [2_000, 50_000], 10**9),
        "streams": lambda: streams([10, 100, 1_000] if full else [10, 100]),
        "parameters": lambda: parameters([10, 1_000, 5_000] if full else [10, 100]),
        "growth": lambda: growth([1, 10, 100, 1_000, 10_000, 100_000] if full else [1, 10, 100]),
        "loaders": lambda: loaders([10, 100, 1_000] if full else [10, 50]),
        "fastai": lambda: fastai(*(([1_000, 1_000_000], [10, 100, 1_000]) if full else ([1_000, 20_000], [10, 20]))),
        "models": lambda: scale_models.parameters([10**6, 10**7, 10**8, 3 * 10**8] if full else [1_000, 10_000]),
        "batch_norms": lambda: scale_models.batch_norms([10, 200] if full else [2, 4]),
        "measured_run": lambda: scale_models.measured_run([10**4, 10**5, 10**6] if full else [2_000, 4_000]),
        "ranks": lambda: ranks([2, 4, 8] if full else [2]),
        "run_length": lambda: run_length([1_000, 10_000, 100_000] if full else [500, 10_000]),
    }
    list(islice(loader_of(Rows(20)), 2))  # what the first loader of a process imports is not counted
    found = [row for name, part in parts.items() if not only or name in only for row in part()]
    return sorted(found, key=lambda row: -round(row.law, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=(), help="some of the parts; nothing is written then")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(only=tuple(args.only))
    for row in found:
        shown = "  ".join(f"{size:,}: {figure:,}" for size, figure in row.figures.items())
        print(f"{row.law:5.1f}  {row.what} ({row.unit}, by {row.by})  {shown}")
    if not args.only:
        print(save("scale", {"rows": [{**asdict(row), "law": round(row.law, 2)} for row in found]}))


if __name__ == "__main__":
    main()
