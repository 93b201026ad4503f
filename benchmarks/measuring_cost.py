"""What a measurement costs: in passes of its own, or by splitting the training step in two.

    python benchmarks/measuring_cost.py

Three models and two batch sizes. Plain steps, steps beside a measurement of its own, and split steps take turns; the
medians of their ratios to the plain step are written to results/measuring_cost.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from fastai.basics import Adam, params
from fastai.tabular.model import TabularModel
from machine import save
from torch import nn

from adaptbs.gradients.batch_loss import BatchLoss
from adaptbs.gradients.batches import length, part
from adaptbs.gradients.micro_batches import GradientPool, HalfBatches

ROUNDS = 60
WARM_UP = 5


def mlp(n: int):
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 784), torch.randint(10, (n,)))


def cnn(n: int):
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]

    model = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 16, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 1, 28, 28), torch.randint(10, (n,)))


def tabular(n: int):
    sizes = [(16, 8), (106, 22), (25, 10), (13, 7), (20, 9), (8, 5)]
    model = TabularModel(sizes, 5, 1, [200, 100])
    categories = torch.stack([torch.randint(k, (n,)) for k, _ in sizes], 1)
    return model, nn.MSELoss(), (categories, torch.randn(n, 5), torch.randn(n, 1))


def split_step(model: nn.Module, loss: BatchLoss, batch) -> GradientPool:
    """The alternative: the two halves' gradients are measured, and their mean is the step's."""
    half = length(batch) // 2
    parameters = list(model.parameters())
    pool = GradientPool(half)
    sums = None
    for start in (0, half):
        gradient = torch.autograd.grad(loss(model, part(batch, start, start + half)), parameters)
        pool.add(gradient)
        sums = list(gradient) if sums is None else [a + b for a, b in zip(sums, gradient, strict=True)]
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / 2
    pool.norms()
    return pool


def compare(make: Callable, n: int) -> dict[str, float]:
    """Medians over rounds in which the three kinds of step take turns."""
    torch.manual_seed(0)
    model, loss_func, batch = make(n)
    optimizer = Adam(params(model), lr=1e-3)
    loss = BatchLoss(loss_func)
    source = HalfBatches(model, loss)

    def plain() -> None:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def own_pass() -> None:
        source.measure(batch)
        plain()

    def split() -> None:
        split_step(model, loss, batch)
        optimizer.step()
        optimizer.zero_grad()

    seconds: dict[str, list[float]] = {"plain": [], "own pass": [], "split step": []}
    for i in range(ROUNDS + WARM_UP):
        for name, step in (("plain", plain), ("own pass", own_pass), ("split step", split)):
            begin = time.perf_counter()
            step()
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    base = statistics.median(seconds["plain"])
    return {
        "step_ms": 1000 * base,
        "extra_own_pass": statistics.median(seconds["own pass"]) / base - 1,
        "extra_split_step": statistics.median(seconds["split step"]) / base - 1,
    }


def main() -> None:
    rows = []
    for name, make in (("MLP", mlp), ("CNN with BatchNorm", cnn), ("fastai tabular", tabular)):
        for n in (64, 512):
            row = {"model": name, "batch_size": n, **compare(make, n)}
            rows.append(row)
            print(
                f"{name:20s} {n:4d}  step {row['step_ms']:6.2f} ms   extra: "
                f"own pass {row['extra_own_pass']:5.0%}, split step {row['extra_split_step']:5.0%}"
            )
    print(save("measuring_cost", {"rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
