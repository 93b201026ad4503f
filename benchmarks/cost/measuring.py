"""What a measurement costs: in the step, in passes of its own, or by splitting the training step.

    python -m benchmarks.cost.measuring

Plain steps, measured steps, steps beside a measurement in a pass of its own (by halves, or by the norms of single
examples), and split steps take turns. The medians of the extra time, in plain steps, go to results/measuring_cost.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from fastai.basics import Adam, params
from fastai.tabular.model import TabularModel
from torch import nn

from adaptbs.gradients.halves import GradientPool, HalfBatches
from adaptbs.gradients.in_step import InStep
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.model.batches import batch_length, slice_batch
from adaptbs.model.modules import has_batch_norm
from benchmarks.common.machine import save
from benchmarks.common.per_example import PerExample

ROUNDS = 60
SLOW = 0.05  # seconds of a step from which on a quarter of the rounds will do
WARM_UP = 5


def mlp(n: int):
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 784), torch.randint(10, (n,)))


def cnn(n: int, width: int = 16):
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]

    blocks = *block(1, width), *block(width, 2 * width), *block(2 * width, 4 * width)
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * width * 16, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 1, 28, 28), torch.randint(10, (n,)))


def plain_cnn(n: int):
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, 2, 1), nn.ReLU()]

    model = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 16, 10))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 1, 28, 28), torch.randint(10, (n,)))


def transformer(n: int):
    """Two layers on 64 tokens."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)
            layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x):
            return self.head(self.layers(self.embedding(x)))

    x = torch.randint(100, (n, 64))
    return Model(), lambda pred, y: nn.functional.cross_entropy(pred.flatten(0, 1), y.flatten()), (x, x.roll(1, 1))


def tokens(n: int):
    """The layers of a small transformer without its attention, on 32 tokens."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

        def forward(self, x):
            return x + self.inside(x)

    model = nn.Sequential(nn.Embedding(100, 64), Residual(), Residual(), nn.Linear(64, 100))
    x = torch.randint(100, (n, 32))
    return model, lambda pred, y: nn.functional.cross_entropy(pred.flatten(0, 1), y.flatten()), (x, x.roll(1, 1))


def tabular(n: int, batch_norm: bool = True):
    sizes = [(16, 8), (106, 22), (25, 10), (13, 7), (20, 9), (8, 5)]
    model = TabularModel(sizes, 5, 1, [200, 100], use_bn=batch_norm, bn_cont=batch_norm)
    categories = torch.stack([torch.randint(k, (n,)) for k, _ in sizes], 1)
    return model, nn.MSELoss(), (categories, torch.randn(n, 5), torch.randn(n, 1))


def split_step(model: nn.Module, loss: BatchLoss, batch) -> GradientPool:
    """The alternative: the two halves' gradients are measured, and their mean is the step's."""
    half = batch_length(batch) // 2
    parameters = list(model.parameters())
    pool = GradientPool(half)
    sums = None
    for start in (0, half):
        gradient = torch.autograd.grad(loss(model, slice_batch(batch, start, start + half)), parameters)
        pool.add(gradient)
        sums = list(gradient) if sums is None else [a + b for a, b in zip(sums, gradient, strict=True)]
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / 2
    pool.norms()
    return pool


def compare(make: Callable, n: int) -> dict:
    """Medians over rounds in which the three kinds of step take turns."""
    torch.manual_seed(0)
    model, loss_func, batch = make(n)
    optimizer = Adam(params(model), lr=1e-3)
    loss = BatchLoss(loss_func)
    watch, halves, examples = InStep(model), HalfBatches(model, loss), PerExample(model, loss)

    def plain() -> None:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def in_step() -> None:
        watch.arm(n)
        loss(model, batch).backward()
        watch.norms()
        watch.disarm()
        optimizer.step()
        optimizer.zero_grad()

    def by_halves() -> None:
        halves.measure(batch)
        plain()

    def per_example() -> None:
        examples.measure(batch)
        plain()

    def split() -> None:
        split_step(model, loss, batch)
        optimizer.step()
        optimizer.zero_grad()

    kinds = {"plain": plain, "in step": in_step, "halves": by_halves, "per example": per_example, "split step": split}
    if has_batch_norm(model):
        del kinds["in step"], kinds["per example"]
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    rounds = ROUNDS
    for i in range(ROUNDS + WARM_UP):
        if i == 2 * WARM_UP and statistics.median(seconds["plain"]) > SLOW:
            rounds = ROUNDS // 4
        if i == rounds + WARM_UP:
            break
        for name, step in kinds.items():
            begin = time.perf_counter()
            step()
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    base = statistics.median(seconds.pop("plain"))
    extra = {name: statistics.median(s) / base - 1 for name, s in seconds.items()}
    return {"step_ms": 1000 * base, **extra}


MODELS = {
    "MLP": mlp,
    "tokens": tokens,
    "transformer": transformer,
    "fastai tabular": partial(tabular, batch_norm=False),
    "fastai tabular, BatchNorm": tabular,
    "CNN": plain_cnn,
    "CNN, BatchNorm": cnn,
}
KINDS = ("in step", "halves", "per example", "split step")


def main() -> None:
    torch.set_num_threads(1)  # so that it depends on what is computed, and not on what else uses the cores
    rows = []
    for name, make in MODELS.items():
        for n in (64, 512):
            row = {"model": name, "batch_size": n, **compare(make, n)}
            rows.append(row)
            extra = ", ".join(f"{kind} {row[kind]:.0%}" for kind in KINDS if kind in row)
            print(f"{name:24s} {n:4d}  step {row['step_ms']:6.2f} ms   extra: {extra}", flush=True)
    print(save("measuring_cost", {"rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
