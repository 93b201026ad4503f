"""How much BatchNorm over few samples changes what is measured.

    python -m benchmarks.noise_scale.batch_norm [--mnist DIR]

|G|^2, tr(Sigma) and B_simple of batches of b samples, b = 4 to 128, each normalised by its own statistics: exact, from
all pairs of batches of the data, before training and after 400 steps of Adam. Written to results/batch_norm.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.optim import Adam

from benchmarks.common.machine import save
from benchmarks.common.mnist import load
from benchmarks.noise_scale.exact import by_batches

SIZES = (4, 8, 16, 32, 64, 128)
POINTS = (0, 400)
SAMPLES = 40_000
loss_func = nn.functional.cross_entropy


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """The five convolutions of fastai's course."""

    def conv(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(
        *conv(1, 8), *conv(8, 16), *conv(16, 32), *conv(32, 16), nn.Conv2d(16, 10, 3, 2, 1), nn.BatchNorm2d(10),
        nn.Flatten(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    torch.set_num_threads(1)
    x, y = load(parser.parse_args().mnist)
    rows = []
    for name, make in {"MLP": mlp, "CNN": cnn}.items():
        torch.manual_seed(0)
        model = make()
        optimizer = Adam(model.parameters(), 1e-3)
        for step in range(POINTS[-1] + 1):
            if step in POINTS:
                for size in SIZES:
                    chosen = torch.randperm(len(x))[:SAMPLES]
                    found = by_batches(
                        model, loss_func, x[chosen], y[chosen], size=size, generator=torch.Generator().manual_seed(0)
                    )
                    rows.append({
                        "model": name, "step": step, "size": size,
                        "grad_sq": found.grad_sq, "trace": found.trace, "noise_scale": found.trace / found.grad_sq,
                    })  # fmt: skip
                    print(rows[-1], flush=True)
            chosen = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            loss_func(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    print(save("batch_norm", {"samples": SAMPLES, "rows": rows}))


if __name__ == "__main__":
    main()
