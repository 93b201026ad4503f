"""A fixed batch of 64 against one that grows from 64: flights (fastai) and MNIST (a plain loop).

    python benchmarks/fixed_vs_adaptive.py [--mnist DIR] [--seeds 5] [--only flights|mnist]

DIR holds MNIST's four gzipped idx files; without it they are downloaded. The two runs of a seed take turns in going
first, so that a machine that slows down favours neither. Ratios are adaptive / fixed, seed by seed; their medians and
ranges are written to results/fixed_vs_adaptive.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from machine import save
from mnist import load
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader

BATCH_SIZE = 64
EPOCHS = 3
MNIST_LR = 3e-3
FIRST_SEED = 100  # away from the seeds that anything was tried out on


class Result(NamedTuple):
    """One training run."""

    metric: float  # RMSE in minutes, or NLL: the smaller the better
    seconds: float
    steps: int
    samples: int
    final_batch: int
    noise_scale: float | None = None
    reasons: dict[str, int] | None = None  # how often each reason decided


def flights() -> Callable[[int, bool], Result]:
    """The demo's task, as the demo runs it."""
    from adaptbs import demo_flights as task
    from adaptbs.fastai import AdaptiveBatchSize

    path = task.data_file()
    if path is None:
        raise SystemExit('the flights are not there: pip install "adaptbs[demo]"')
    data = task.prepare(task.read_flights(path, False))
    lr = task.find_lr(data, BATCH_SIZE, 0)
    print(f"flights: learning rate {lr:.2g}", flush=True)

    def run(seed: int, adaptive: bool) -> Result:
        callback = AdaptiveBatchSize() if adaptive else None
        out = task.train(data, EPOCHS, lr, BATCH_SIZE, seed, callback, report=lambda *args, **kwargs: None)
        kept = _adaptive(callback) if callback else {"final_batch": BATCH_SIZE}
        return Result(out.rmse, out.seconds, len(out.samples), int(out.samples[-1]), **kept)

    return run


def mnist(folder: Path | None) -> Callable[[int, bool], Result]:
    """A small CNN whose step on a CPU is bound by computing: a larger batch saves hardly any time there."""
    (x, y), (held_x, held_y) = load(folder), load(folder, train=False)
    data = TensorDataset(x, y)

    def run(seed: int, adaptive: bool) -> Result:
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 10),
        )  # fmt: skip
        optimizer = Adam(model.parameters(), MNIST_LR)
        scheduler = OneCycleLR(optimizer, MNIST_LR, total_steps=EPOCHS * -(-len(data) // BATCH_SIZE))
        loss_func = nn.functional.cross_entropy
        loader = (
            AdaptiveDataLoader(
                data, BATCH_SIZE, shuffle=True,
                model=model, optimizer=optimizer, loss_func=loss_func, scheduler=scheduler,
            )
            if adaptive
            else DataLoader(data, BATCH_SIZE, shuffle=True)
        )  # fmt: skip
        steps = samples = 0
        begin = time.perf_counter()
        for _ in range(EPOCHS):
            for xb, yb in loader:
                optimizer.zero_grad()
                loss_func(model(xb), yb).backward()
                optimizer.step()
                scheduler.step()
                steps, samples = steps + 1, samples + len(xb)
        seconds = time.perf_counter() - begin
        with torch.no_grad():
            metric = loss_func(model(held_x), held_y).item()
        kept = _adaptive(loader) if adaptive else {"final_batch": BATCH_SIZE}
        return Result(metric, seconds, steps, samples, **kept)

    return run


def _adaptive(source) -> dict:
    reasons = [r for r in source.history.decisions()["reason"] if r != "start"]
    return {
        "final_batch": source.batch_size,
        "noise_scale": source.noise_scale.simple if source.noise_scale else None,
        "reasons": {r: reasons.count(r) for r in sorted(set(reasons))},
    }


def compare(name: str, run: Callable[[int, bool], Result], seeds: int) -> dict:
    """Pairs of runs, one a seed; ratios adaptive / fixed."""
    pairs = []
    for i in range(seeds):
        seed = FIRST_SEED + i
        order = (False, True) if i % 2 == 0 else (True, False)
        results = {adaptive: run(seed, adaptive) for adaptive in order}
        fixed, ours = results[False], results[True]
        pairs.append((seed, fixed, ours))
        print(
            f"{name} seed {seed}: fixed {fixed.metric:.4f} {fixed.seconds:.1f} s {fixed.steps} steps | "
            f"adaptive {ours.metric:.4f} {ours.seconds:.1f} s {ours.steps} steps, "
            f"batch {ours.final_batch} {ours.reasons}",
            flush=True,
        )

    def ratios(field: str) -> dict[str, float]:
        values = [getattr(ours, field) / getattr(fixed, field) for _, fixed, ours in pairs]
        return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}

    return {
        "ratios": {field: ratios(field) for field in ("metric", "seconds", "steps", "samples")},
        "runs": [{"seed": s, "fixed": f._asdict(), "adaptive": o._asdict()} for s, f, o in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("flights", "mnist"))
    args = parser.parse_args()
    tasks = {}
    if args.only != "mnist":
        tasks["flights"] = flights()
    if args.only != "flights":
        tasks["mnist"] = mnist(args.mnist)
    result = {name: compare(name, run, args.seeds) for name, run in tasks.items()}
    print(save("fixed_vs_adaptive", {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "tasks": result}))


if __name__ == "__main__":
    main()
