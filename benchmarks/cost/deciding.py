"""Milliseconds that decisions take in a run: reading what was measured and timed, estimating, deciding.

    python -m benchmarks.cost.deciding

Runs in plain loops, with a batch that may grow. The run's own clock says what each decision took, and each look at new
measurements before its turn. Between two of them the model's steps have filled the processor's caches. Results go to
results/deciding.json. `benchmarks.quality.model_clock` charges a modelled run for each decision by them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.timing.device_clock import DeviceClock
from benchmarks.common.machine import save
from benchmarks.cost.measuring import cnn, mlp

BATCH_SIZE, EPOCH_STEPS = 64, 100
#: what is trained, and epochs of its run
RUNS: dict[str, tuple[Callable, int]] = {
    "MLP, 600 steps at first": (mlp, 6),
    "MLP, 2,400 steps at first": (mlp, 24),
    "CNN with BatchNorm, 600 steps at first": (cnn, 6),
}
ROUNDS = 3


class WatchedClock(DeviceClock):
    """The host's clock, which keeps the seconds of each decision."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.decisions: list[float] = []

    @contextmanager
    def deciding(self) -> Iterator[None]:
        begin = time.perf_counter()
        with super().deciding():
            yield
        self.decisions.append(time.perf_counter() - begin)


def decisions(make: Callable, epochs: int, seed: int) -> list[float]:
    """Seconds of each decision of one run."""
    torch.manual_seed(seed)
    model, loss_func, data = make(BATCH_SIZE * EPOCH_STEPS)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        TensorDataset(*data), BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer, loss_func=loss_func,
        epochs=epochs,
    )  # fmt: skip
    clock = WatchedClock()
    loader.training_run.use_clock(clock)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_func(model(x), y).backward()
            optimizer.step()
    return clock.decisions


def main() -> None:
    torch.set_num_threads(1)
    decisions(mlp, 2, 0)  # loads what the first run would else load
    rows = []
    for name, (make, epochs) in RUNS.items():
        runs = [decisions(make, epochs, seed) for seed in range(ROUNDS)]
        made = [1000 * seconds for run in runs for seconds in run]
        tenths = statistics.quantiles(made, n=10)
        rows.append({
            "run": name, "decisions": statistics.median(map(len, runs)),
            "median_ms": statistics.median(made), "mean_ms": statistics.fmean(made), "ninth_tenth_ms": tenths[-1],
        })  # fmt: skip
        print(rows[-1], flush=True)
    print(save("deciding", {"batch_size": BATCH_SIZE, "rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
