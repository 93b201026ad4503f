"""How far the estimate of B_simple spreads at frozen weights, measured and by theory; `coverage.py` runs it.

Four ways to pool n batches of 128 samples, from what a training step can afford to the best there is:

- "halves": the pair of halves of each batch;
- "per example": all pairs of samples within each batch (PerExample; no unbiased estimate from one batch varies less);
- "20 batches": all pairs of batches within each block of 20, smoothed from block to block as bs_find does;
- "all samples": all pairs of samples, also across batches. Of all estimates that are unbiased whatever the distribution
  of gradients, this has the least variance of tr(Sigma) and of |G|^2 (Halmos 1946), so it is the floor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from adaptbs.noise_scale.b_simple import estimate
from adaptbs.types import SquaredNorms
from benchmarks.noise_scale.frozen import GROUP, Gaussian, Measured, Moments, Population

REPETITIONS, BATCH, BLOCK, BETA = 400, 128, 20, 0.99
SAMPLES = (2048, 8192, 32768)


def twenty_batches(m: Measured, n: int) -> float | None:
    """bs_find with n_batch=20 on the first n batches (at frozen weights; `find` does the same after its gradients)."""
    blocks = []
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        mean_square = np.mean([float(batch.large) for batch in m.halves[first:last]])
        blocks.append(SquaredNorms(BATCH, float(mean_square), (last - first) * BATCH, square_of_mean(m, first, last)))
    weights = [b.large_size * BETA**age for age, b in enumerate(reversed(blocks))][::-1]
    return estimate(blocks, weights).simple


def all_samples(m: Measured, n: int) -> float | None:
    mean_square = float(m.mean_square[:n].mean())
    return estimate([SquaredNorms(1, mean_square, n * BATCH, square_of_mean(m, 0, n))]).simple


def square_of_mean(m: Measured, first: int, last: int) -> float:
    return float(m.gradients[first // GROUP : last // GROUP].mean(0).square().sum())


WAYS: dict[str, Callable[[Measured, int], float | None]] = {
    "halves": lambda m, n: estimate(m.halves[:n]).simple,
    "per example": lambda m, n: estimate(m.examples[:n]).simple,
    "20 batches": twenty_batches,
    "all samples": all_samples,
}


def theory(moments: Moments, way: str, n: int) -> float:
    """Standard deviation of log B_simple from n batches, to first order."""
    if way == "all samples":
        return moments.sd_of_log(n * BATCH, 1, 1)
    if way == "20 batches":
        return moments.sd_of_log(min(n, BLOCK), BATCH, max(1, n / BLOCK))
    return moments.sd_of_log(2, BATCH // 2, n) if way == "halves" else moments.sd_of_log(BATCH, 1, n)


def spreads(name: str, problem: Population | Gaussian, generator: torch.Generator) -> dict:
    """Each way's spread at each number of samples, from the same batches, and what the problem is like."""
    logs: dict[tuple[str, int], list[float]] = {(way, samples): [] for way in WAYS for samples in SAMPLES}
    for _ in range(REPETITIONS):
        m = problem.measure(SAMPLES[-1] // BATCH, BATCH, generator)
        for way, samples in logs:
            found = WAYS[way](m, samples // BATCH)
            if found is not None:
                logs[way, samples].append(np.log(found / problem.noise_scale))
    moments = problem.moments(generator)
    rows = [
        {
            "way": way, "samples": samples, "sd_of_log": float(np.std(values)), "mean_of_log": float(np.mean(values)),
            "theory": theory(moments, way, samples // BATCH), "without_estimate": REPETITIONS - len(values),
        }
        for (way, samples), values in logs.items()
    ]  # fmt: skip
    for row in rows:
        print(name, row, flush=True)
    along = moments.along / (moments.trace * moments.grad_sq)  # 1/r where noise is isotropic
    return {"problem": name, "noise_scale": problem.noise_scale, "r": moments.r, "along": along, "rows": rows}
