"""What measuring adds to a training run, against `overhead`.

    python benchmarks/overhead.py [--rounds 9]

The same run without adaptbs, and with it measuring but not growing (`max_batch_size` equal to the start), at overheads
of 0 (adaptbs in place, nothing measured), .02 and .05. The four take turns; ratios of total time are paired by round,
their medians and quartiles written to results/overhead.json. Time is CPU time of a single thread: on a shared machine
the clock on the wall varies by more than what is to be measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from fastai.basics import DataLoader as FastaiLoader
from fastai.basics import DataLoaders, Learner
from fastai.callback import schedule  # noqa: F401  (adds fit_one_cycle)
from machine import save
from measuring_cost import cnn, mlp, tabular
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize

BATCH_SIZE = 64
OVERHEADS = (0.0, 0.02, 0.05)


def plain_loop(make: Callable, steps: int, epochs: int) -> Callable[[float | None], float]:
    """Seconds of a loop in plain torch; overhead None is without adaptbs."""

    def run(overhead: float | None) -> float:
        torch.manual_seed(0)
        model, loss_func, tensors = make(BATCH_SIZE * steps)
        data = TensorDataset(*tensors)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        if overhead is None:
            loader = DataLoader(data, BATCH_SIZE, shuffle=True)
        else:
            loader = AdaptiveDataLoader(
                data, BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer, loss_func=loss_func,
                epochs=epochs, max_batch_size=BATCH_SIZE, overhead=overhead,
            )  # fmt: skip
        begin = time.process_time()
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss_func(model(x), y).backward()
                optimizer.step()
        return time.process_time() - begin

    return run


class Rows(Dataset):
    """(categories, numbers, target) of one row."""

    def __init__(self, tensors: tuple) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int) -> tuple:
        return tuple(t[i] for t in self.tensors)


def fastai_fit(steps: int, epochs: int) -> Callable[[float | None], float]:
    """Seconds of `fit_one_cycle` on fastai's tabular model, BatchNorm included."""

    def run(overhead: float | None) -> float:
        torch.manual_seed(0)
        model, loss_func, tensors = tabular(BATCH_SIZE * steps)
        train = FastaiLoader(Rows(tensors), bs=BATCH_SIZE, shuffle=True)
        learn = Learner(DataLoaders(train, FastaiLoader(Rows(tensors), bs=4096, n=64)), model, loss_func=loss_func)
        callbacks = [] if overhead is None else [AdaptiveBatchSize(max_batch_size=BATCH_SIZE, overhead=overhead)]
        begin = time.process_time()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, 1e-3, cbs=callbacks)
        return time.process_time() - begin

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    tasks = {
        "MLP, plain loop": plain_loop(mlp, steps=300, epochs=2),
        "CNN with BatchNorm, plain loop": plain_loop(cnn, steps=200, epochs=2),
        "fastai tabular with BatchNorm": fastai_fit(steps=200, epochs=2),
    }
    rows = []
    for name, run in tasks.items():
        run(None)  # warm
        ratios: dict[float, list[float]] = {overhead: [] for overhead in OVERHEADS}
        for i in range(rounds):
            order = [None, *OVERHEADS] if i % 2 == 0 else [*reversed(OVERHEADS), None]
            seconds = {overhead: run(overhead) for overhead in order}
            for overhead in OVERHEADS:
                ratios[overhead].append(seconds[overhead] / seconds[None])
        for overhead, values in ratios.items():
            low, middle, high = statistics.quantiles(values, n=4)
            rows.append({"task": name, "overhead": overhead, "ratio": middle, "lower": low, "upper": high})
            print(f"{name:32s} overhead {overhead:.2f}: time ratio {middle:.3f} ({low:.3f}-{high:.3f})", flush=True)
    print(save("overhead", {"rounds": rounds, "rows": rows}))


if __name__ == "__main__":
    main()
