"""One epoch of MNIST with every step measured: does the pooled estimate agree with the exact noise scale of that epoch?

    python -m benchmarks.noise_scale.epoch_average --mnist DIR
    python -m benchmarks.noise_scale.epoch_average --mnist DIR --lr 0.1 --every 1 --seeds 2

MLP 784-64-10, batch 128, SGD .01, 20 seeds; each batch is measured by halves and per example before its step. Over the
epoch B_simple = sum of tr(Sigma) / sum of |G|^2. The truth is that of all 60,000 samples in the middle of every 18
steps, pooled likewise. Samples are drawn without
replacement, so the truth is the mean over pairs of *different* samples (`exact.by_example`).

The same runs show how the interval fares while weights move: `Window.estimate` at the 26 steps, against the truth of
that moment and against the truth averaged with the window's weights. At SGD .1, |G|^2 jumps by several times from step
to step: there the truth is needed at every one. Written to results/epoch_average.json (or epoch_average_lr_0.1.json).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.b_simple import to_floats
from adaptbs.noise_scale.window import FORGET, MEMORY, MeasurementWindow
from adaptbs.types import ENOUGH, SquaredNorms
from benchmarks.common import mnist
from benchmarks.common.machine import save
from benchmarks.common.per_example import PerExample
from benchmarks.noise_scale import correlated, exact

BATCH, LR = 128, 0.01
AS_IS = "as it is"  # the package's, which forgets what newer measurements contradict; the others forget nothing sooner
KINDS = (*correlated.KINDS, AS_IS)
SOURCES = {"halves": HalfBatches, "per example": PerExample}


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


Run = tuple[dict[str, list[SquaredNorms]], dict[int, SquaredNorms]]


def run(seed: int, x: Tensor, y: Tensor, lr: float, every: int) -> Run:
    """Every measurement of an epoch by source, and the truth by step (at the first, and amid every `every`)."""
    model = mlp(seed)
    sources = {name: kind(model, BatchLoss(cross_entropy)) for name, kind in SOURCES.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    measured: dict[str, list[SquaredNorms]] = {name: [] for name in sources}
    truth = {}
    for step, chosen in enumerate(torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH)):
        batch = x[chosen], y[chosen]
        if step % every == every // 2 or step == 0:
            truth[step] = exact.by_example(model, cross_entropy, x, y)
        for name, source in sources.items():
            measured[name].append(source.measure(batch))
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return {name: to_floats(norms) for name, norms in measured.items()}, truth


def pairs(norms: list[SquaredNorms]) -> np.ndarray:
    """(tr(Sigma), |G|^2), shape (n, 2)."""
    return np.array([[float(n.trace), float(n.grad_sq)] for n in norms])


def averages(runs: list[Run], every: int) -> dict[str, dict]:
    """Estimate / truth of B_simple over the epoch: seed by seed, and sums over all seeds."""
    middle = [[t for step, t in truth.items() if step % every == every // 2] for _, truth in runs]
    true = np.array([pairs(values).mean(0) for values in middle])
    rows = {}
    for name in SOURCES:
        found = np.array([pairs(measured[name]).mean(0) for measured, _ in runs])
        ratios = (found[:, 0] / found[:, 1]) / (true[:, 0] / true[:, 1])
        sums = found.sum(0) / true.sum(0)
        rows[name] = {
            "mean_of_seeds": float(ratios.mean()),
            "standard_error": float(ratios.std(ddof=1) / len(runs) ** 0.5),
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
            "pooled": float(sums[0] / sums[1]),
            "trace": float(sums[0]),
            "grad_sq": float(sums[1]),
        }
    return rows


def in_windows(runs: list[Run], n: int) -> list[dict]:
    """What `Window.estimate` says at each step with a truth, and what the residuals in that window look like."""
    rows = []
    for measured, truth in runs:
        known = pairs(list(truth.values()))
        along = np.stack([np.interp(np.arange(max(truth) + 1), list(truth), column) for column in known.T], 1)
        for name, norms in measured.items():
            window = MeasurementWindow(n)
            for step, measurement in enumerate(norms):
                window.add((step + 1) * BATCH, measurement)
                if step not in truth or step + 1 < ENOUGH:
                    continue
                estimate = window.estimate(0.9)
                recent = slice(max(0, step - int(FORGET * MEMORY * n / BATCH)), step + 1)
                x, true = pairs(norms[recent]), along[recent]
                w = np.exp(np.arange(1 - len(x), 1) * BATCH / (MEMORY * n))
                kept = slice(-estimate.measurements, None)  # the window may have forgotten the older half
                limits = {kind: correlated.interval(x, w, kind) for kind in correlated.KINDS}
                if estimate.measurements == len(x):
                    assert np.allclose((estimate.low, estimate.high), limits["independent"]), "not the window's weights"
                averages = {kind: ratio(w @ true) for kind in limits}
                limits[AS_IS], averages[AS_IS] = (estimate.low, estimate.high), ratio(w[kept] @ true[kept])
                rows.append({
                    "source": name, "limits": limits, "cautious": estimate.cautious,
                    "moment": ratio(true[-1]), "averages": averages,
                    "about_mean": lag_one(x - w @ x / w.sum(), w), "about_truth": lag_one(x - true, w),
                })  # fmt: skip
    return rows


def ratio(pair: np.ndarray) -> float:
    """B_simple of (tr(Sigma), |G|^2)."""
    return float(pair[0] / pair[1])


def lag_one(residuals: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weighted autocorrelation at lag 1 of each column."""
    r = residuals * w[:, None]
    return (r[1:] * r[:-1]).sum(0) / (r**2).sum(0)


def summary(rows: list[dict], name: str) -> dict:
    """Shares of `in_windows`' rows of one source."""
    rows = [row for row in rows if row["source"] == name]
    now, cautious = (np.array([row[key] for row in rows]) for key in ("moment", "cautious"))
    averages = {kind: np.array([row["averages"][kind] for row in rows]) for kind in KINDS}

    def covers(truth: np.ndarray, kind: str) -> float:
        low, high = np.array([row["limits"][kind] for row in rows]).T
        return float(np.mean((low <= truth) & (truth <= high)))

    return {
        "intervals": len(rows),
        **{f"{kind}: covers window average": covers(averages[kind], kind) for kind in KINDS},
        **{f"{kind}: covers moment": covers(now, kind) for kind in KINDS},
        "window_average_above_cautious": float(np.mean(cautious <= averages[AS_IS])),
        "moment_above_cautious": float(np.mean(cautious <= now)),
        "window_average_over_moment": float(np.median(averages[AS_IS] / now)),
        "no_upper_limit": float(np.mean([np.isinf(row["limits"][AS_IS][1]) for row in rows])),
        "lag_one_about_mean": np.mean([row["about_mean"] for row in rows], 0).tolist(),
        "lag_one_about_truth": np.mean([row["about_truth"] for row in rows], 0).tolist(),
    }


def main(folder: Path | None, seeds: int, lr: float, every: int) -> None:
    torch.set_num_threads(1)
    x, y = mnist.load(folder)
    x = x.flatten(1)
    runs = []
    for seed in range(seeds):
        runs.append(run(seed, x, y, lr, every))
        print(f"seed {seed} done", flush=True)
    rows = in_windows(runs, len(x))
    ends = np.array([[pairs([truth[step]])[0] for step in (min(truth), max(truth))] for _, truth in runs])
    first, last = np.median(ends[..., 0] / ends[..., 1], axis=0).tolist()  # B_simple
    result = {
        "seeds": seeds, "batch_size": BATCH, "lr": lr, "truth_every": every,
        "truth_at_start": first, "truth_at_end": last,
        "averages": averages(runs, every), "windows": {name: summary(rows, name) for name in SOURCES},
    }  # fmt: skip
    print(result)
    print(save("epoch_average" if lr == LR else f"epoch_average_lr_{lr}", result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's four files; downloaded if not given")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--every", type=int, default=18, help="steps between two exact values")
    args = parser.parse_args()
    main(args.mnist, args.seeds, args.lr, args.every)
