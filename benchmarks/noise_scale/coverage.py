"""How often the interval covers the truth, and how far the estimate spreads.

    python -m benchmarks.noise_scale.coverage --mnist DIR

Coverage: 2,000 repetitions of 30 measurements of batches of 128, by halves and per example, at nominal 90 %: Gaussian
gradients with B_simple/b of 1, 4, 10 and 40 (b the smaller batch of the halves), and an MLP 784-64-10 on MNIST, frozen
at three points of its training by SGD .01. Spread: `spread.py`, on Gaussian gradients and at that MLP's start. Batches
are drawn with replacement, where the truth is that of the population (`frozen.Population`); in an epoch, which repeats
no sample, estimates spread a little less. Written to results/coverage.json; takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adaptbs.noise_scale.b_simple import estimate
from adaptbs.types import SquaredNorms
from benchmarks.common import mnist
from benchmarks.common.machine import save
from benchmarks.noise_scale import correlated
from benchmarks.noise_scale.frozen import Gaussian, Population, train
from benchmarks.noise_scale.spread import spreads

REPETITIONS, MEASUREMENTS, BATCH, DIMENSIONS, SEED = 2000, 30, 128, 20, 2018
POINTS = (0, 300, 1200)  # steps of training before the weights are frozen
SPREAD_AT = (0, 70)  # the same for the spread: where B_simple is near 64 and near 128
LR = 0.01
SMALL = {"halves": BATCH // 2, "per example": 1}

Draw = Callable[[], dict[str, list[SquaredNorms]]]


def gaussian(rng: np.random.Generator, noise_scale: float, n: int, small: int) -> list[SquaredNorms]:
    """n measurements of batches of 128, split into parts of `small`; |G|^2 = 1, tr(Sigma)^2/tr(Sigma^2) = 20."""
    parts = BATCH // small
    mean = np.zeros(DIMENSIONS)
    mean[0] = 1.0
    gradients = mean + np.sqrt(noise_scale / DIMENSIONS / small) * rng.standard_normal((n, parts, DIMENSIONS))
    squares = (gradients**2).sum(-1).mean(-1)
    whole = (gradients.mean(1) ** 2).sum(-1)
    return [SquaredNorms(small, float(s), BATCH, float(w)) for s, w in zip(squares, whole, strict=True)]


def coverage(problem: str, truth: float, draw: Draw) -> list[dict]:
    """2,000 repetitions, by source."""
    drawn = [draw() for _ in range(REPETITIONS)]
    rows = []
    for source in SMALL:
        norms = [d[source] for d in drawn]
        found = [estimate(n) for n in norms]
        known = [f.simple for f in found if f.simple is not None]
        rows.append({
            "problem": problem,
            "source": source,
            "noise_scale": truth,
            "covered": float(np.mean([f.low <= truth <= f.high for f in found])),
            "truth_above_cautious": float(np.mean([f.cautious <= truth for f in found])),
            "no_upper_limit": float(np.mean([np.isinf(f.high) for f in found])),
            "median_estimate_over_truth": float(np.median(known)) / truth,
            "covered_by_other_covariances": {
                kind: float(np.mean([covers(n, truth, kind) for n in norms])) for kind in correlated.KINDS[1:]
            },
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def covers(norms: list[SquaredNorms], truth: float, kind: str) -> bool:
    x = np.array([[n.trace, n.grad_sq] for n in norms])
    low, high = correlated.interval(x, np.ones(len(x)), kind)
    return low <= truth <= high


def on_gaussians() -> list[dict]:
    rng = np.random.default_rng(SEED)
    rows = []
    for ratio in (1, 4, 10, 40):
        truth = ratio * BATCH / 2

        def draw(truth: float = truth) -> dict[str, list[SquaredNorms]]:
            return {source: gaussian(rng, truth, MEASUREMENTS, small) for source, small in SMALL.items()}

        rows += coverage("Gaussian", truth, draw)
    return rows


def on_mnist(x: Tensor, y: Tensor, generator: torch.Generator) -> list[dict]:
    rows = []
    for steps in POINTS:
        population = after(steps, x, y)

        def draw(population: Population = population) -> dict[str, list[SquaredNorms]]:
            m = population.measure(MEASUREMENTS, BATCH, generator)
            return {"halves": m.halves, "per example": m.examples}

        r = population.moments(generator).r
        rows += [{**row, "r": r} for row in coverage(f"MNIST, step {steps:,}", population.noise_scale, draw)]
    return rows


def after(steps: int, x: Tensor, y: Tensor) -> Population:
    """All of MNIST's gradients in the MLP after so many steps."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    train(model, x, y, steps, batch=BATCH, lr=LR)
    return Population(model, x, y)


def main(folder: Path | None) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    x, y = mnist.load(folder)
    x = x.flatten(1)
    spread = [spreads("Gaussian", Gaussian(size), generator) for size in (BATCH // 2, BATCH)]
    spread += [spreads(f"MNIST, step {steps}", after(steps, x, y), generator) for steps in SPREAD_AT]
    rows = on_gaussians() + on_mnist(x, y, generator)
    print(save("coverage", {"repetitions": REPETITIONS, "seed": SEED, "nominal": 0.9, "rows": rows, "spread": spread}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's four files; downloaded if not given")
    main(parser.parse_args().mnist)
