"""How often the interval covers the truth, and how far the estimate spreads.

    python benchmarks/coverage.py

Gaussian gradients with a known noise scale, by halves and per example; 2,000 repetitions of 30 measurements at nominal
90 %, for B_simple/b of 1, 4, 10 and 40 (b the smaller batch of the halves). Written to results/coverage.json.
"""

from __future__ import annotations

import numpy as np
from machine import save

from adaptbs.noise_scale import estimate
from adaptbs.types import SquaredNorms

REPETITIONS, MEASUREMENTS, BATCH, DIMENSIONS, SEED = 2000, 30, 128, 20, 2018


def draw(rng: np.random.Generator, noise_scale: float, n: int, small: int) -> list[SquaredNorms]:
    """n measurements of batches of 128, split into parts of `small`; |G|^2 = 1, tr(Sigma)^2/tr(Sigma^2) = 20."""
    parts = BATCH // small
    mean = np.zeros(DIMENSIONS)
    mean[0] = 1.0
    gradients = mean + np.sqrt(noise_scale / DIMENSIONS / small) * rng.standard_normal((n, parts, DIMENSIONS))
    squares = (gradients**2).sum(-1).mean(-1)
    whole = (gradients.mean(1) ** 2).sum(-1)
    return [SquaredNorms(small, float(s), BATCH, float(w)) for s, w in zip(squares, whole, strict=True)]


def main() -> None:
    rng = np.random.default_rng(SEED)
    rows = []
    for source, small in (("halves", BATCH // 2), ("per example", 1)):
        for ratio in (1, 4, 10, 40):
            truth = ratio * BATCH / 2
            found = [estimate(draw(rng, truth, MEASUREMENTS, small)) for _ in range(REPETITIONS)]
            known = [f.simple for f in found if f.simple is not None]
            rows.append({
                "source": source,
                "ratio": ratio,
                "covered": float(np.mean([f.low <= truth <= f.high for f in found])),
                "truth_above_cautious": float(np.mean([f.cautious <= truth for f in found])),
                "no_upper_limit": float(np.mean([np.isinf(f.high) for f in found])),
                "median_estimate_over_truth": float(np.median(known)) / truth,
            })  # fmt: skip
            print(rows[-1], flush=True)
    spread = []
    for source, small in (("halves", BATCH // 2), ("per example", 1)):
        for samples in (2048, 8192, 32768):
            found = [estimate(draw(rng, BATCH, samples // BATCH, small)).simple for _ in range(400)]
            logs = np.log([f for f in found if f is not None])
            spread.append({"source": source, "samples": samples, "sd_of_log": float(logs.std())})
            print(spread[-1], flush=True)
    print(save("coverage", {"repetitions": REPETITIONS, "seed": SEED, "nominal": 0.9, "rows": rows, "spread": spread}))


if __name__ == "__main__":
    main()
