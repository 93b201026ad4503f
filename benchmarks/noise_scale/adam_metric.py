"""What the noise scale in Adam's metric is good for: which noise scale predicts how much of a step a batch brings?

    python -m benchmarks.noise_scale.adam_metric [--mnist DIR]

An MLP and a small CNN on MNIST, trained by Adam; at three points of training, with weights and v frozen. One step along
the gradient of a batch of B (as SGD's), or along that gradient divided by sqrt(v) + eps (as Adam's), at the step size
that lowers the training loss most on average, lowers it by D(B); the gradient of all the data by D. Where

    D(B)/D = 1/(1 + B_step/B)       (McCandlish et al. 2018, eq. 2.7)

B_step, the batch that brings half, is what a noise scale has to predict. Both noise scales are exact (all pairs of
batches of all the data). Written to results/adam_metric.json.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam

from adaptbs.gradients.halves import GradientPool
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.gradients.views import View, views_of
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.common.machine import save
from benchmarks.common.mnist import load

POINTS = (30, 300, 1500)  # steps of training
SIZES = (32, 128, 512, 2048, 8192)  # B
DRAWS = 16
PART = 64  # size of the batches whose pairs are pooled
HELD = 5000  # training samples that the loss is judged on
loss_func = nn.functional.cross_entropy


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip


def exact(model: nn.Module, view: View | None, x: Tensor, y: Tensor) -> float:
    """B_simple over all the data, of the gradient as it is or as seen through `view`."""
    pool, gradient = GradientPool(PART), MeanGradient(BatchLoss(loss_func))
    look = view(list(model.parameters())) if view else None
    for chosen in torch.randperm(len(x))[: len(x) // PART * PART].split(PART):
        g = gradient(model, (x[chosen], y[chosen]))
        pool.add(look(g) if look else g)
    norms = pool.norms()
    return float(norms.trace / norms.grad_sq)


def half_batch(model: nn.Module, view: View | None, x: Tensor, y: Tensor) -> tuple[float, dict[int, float]]:
    """B_step, the median over batch sizes that bring between a tenth and nine tenths; and D(B)/D of each size."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = MeanGradient(BatchLoss(loss_func))
    held = torch.randperm(len(x))[:HELD]

    def direction(chosen: Tensor) -> list[Tensor]:
        g = gradient(model, (x[chosen], y[chosen]))
        return list(view(parameters)(g)) if view else g

    @torch.no_grad()
    def loss_after(step: list[Tensor], eps: float) -> float:
        moved = {name: p - eps * d for name, p, d in zip(names, parameters, step, strict=True)}
        return loss_func(functional_call(model, moved, (x[held],)), y[held]).item()

    def gain(directions: list[list[Tensor]], steps: list[float]) -> tuple[float, float]:
        """Mean decrease of the loss at the best of these step sizes, and that size."""
        start = loss_after(directions[0], 0.0)
        means = [(statistics.fmean(start - loss_after(d, eps) for d in directions), eps) for eps in steps]
        return max(means)

    whole = direction(torch.arange(len(x)))
    scale = sum(float(d.square().sum()) for d in whole) ** -0.5
    best, eps = gain([whole], [scale * 10 ** (k / 8 - 3) for k in range(33)])
    shares = {}
    for size in SIZES:
        drawn = [direction(torch.randint(len(x), (size,))) for _ in range(DRAWS)]
        shares[size] = gain(drawn, [eps * 2 ** (-k / 2) for k in range(12)])[0] / best
    halves = [size * (1 / share - 1) for size, share in shares.items() if 0.1 < share < 0.9]
    return statistics.median(halves) if halves else float("nan"), shares


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
        adam = views_of(optimizer, metric="adam", by_group=False)["adam"]
        for step in range(1, POINTS[-1] + 1):
            chosen = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            loss_func(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if step not in POINTS:
                continue
            row: dict = {"model": name, "step": step}
            for metric, view in (("plain", None), ("adam", adam)):
                row[f"noise_scale_{metric}"] = exact(model, view, x, y)
                row[f"half_{metric}"], row[f"shares_{metric}"] = half_batch(model, view, x, y)
            rows.append(row)
            print(row, flush=True)
    print(save("adam_metric", {"draws": DRAWS, "sizes": SIZES, "rows": rows}))


if __name__ == "__main__":
    main()
