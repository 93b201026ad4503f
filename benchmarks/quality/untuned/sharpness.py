"""Sharpness: the largest eigenvalue of the Gauss-Newton matrix in the optimizer's metric, at points of a fixed-64 run.

It was to tell the critical batch at any learning rate, as phi_sharp = 64 x limit/(lr x eigenvalue): docs/trade_off.md.
Beside it stand three quantities that are cheaper, of the steps that follow each point, all in the same metric P and
times the learning rate. dx is a step's change of the weights, dg what it does to the gradient of the batch that it was
made from, and D g the gradient of the next batch less that of this one:

    along    <dx, dg>/<dx, P dx>                    the curvature along the step; one pass more
    change   (<dg, P^-1 dg>/<dx, P dx>)^1/2         the same as a ratio of lengths
    between  (<D g, P^-1 D g>/<dx, P dx>)^1/2       without a pass more; mostly noise at 64
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.quality.results import Key, Row, rounded
from benchmarks.quality.tasks import BASE
from benchmarks.quality.training import Watch, epochs_of, order_of, row_of
from benchmarks.quality.untuned.curvature import gauss_newton, largest_eigenvalue, stability_limit, step_lengths
from benchmarks.quality.untuned.persistence import flat, gradient, name_of
from benchmarks.quality.untuned.tasks import UntunedTask

POINTS = (0.15, 0.30, 0.45, 0.60)  # shares of the run
SAMPLES = 1024  # that the eigenvalue is taken over
WINDOW = 5  # steps from each point, over which what is cheaper is pooled
KINDS = ("sharpness", "along", "change", "between")
UNDEFINED = ("mixer_lion",)  # tasks whose optimizer divides by nothing that has a size


@dataclass
class Step:
    """One step of a window, seen in the metric that it was made in.

    Attributes:
        lengths: the diagonal of lr/P.
        moved: the change of the weights.
        before: the batch's gradient at the weights before the step.
        after: the same batch's at the weights after it.
    """

    lengths: Tensor
    moved: Tensor
    before: Tensor
    after: Tensor


def sharpness_run(task: UntunedTask, rate: float, seed: int) -> Row:
    """Train at fixed 64, and read the sharpness on the way, of which training notices nothing."""
    task = replace(task, lr=rate * task.lr)
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, task.lr)
    scheduler = task.make_scheduler(optimizer, BASE)
    weights = [p for p in model.parameters() if p.requires_grad]
    samples = _samples(task, seed)
    steps = task.epochs * -(-len(task.train) // BASE)
    due = [round(point * steps) for point in POINTS]
    watch, readings, window = Watch(task, model, lambda: 0.0, looks=()), [], []
    for batches in epochs_of(task, BASE, seed):
        for x, y in batches:
            if watch.steps in due:
                reading = _sharpness(task, model, optimizer, weights, *samples)
                readings.append({"progress": rounded(watch.steps / steps), **reading})
            watched = any(first <= watch.steps < first + WINDOW for first in due)
            start = flat(weights, weights) if watched else None
            optimizer.zero_grad()
            task.loss_func(model(x), y).backward()
            optimizer.step()
            if start is not None:
                moved, before = flat(weights, weights) - start, flat([p.grad for p in weights], weights)
                after = gradient(task, model, weights, x, y)
                window.append(Step(step_lengths(optimizer, weights), moved, before, after))
                if len(window) == WINDOW:
                    readings[-1] |= cheaper(window)
                    window = []
            if scheduler is not None:
                scheduler.step()
            watch.step(len(y))
    watch.end()
    return row_of(task, name_of(rate), seed, watch) | {"rate": rate, "readings": readings}


def _samples(task: UntunedTask, seed: int) -> tuple[Tensor, Tensor]:
    """Training samples drawn once for a run."""
    chosen = torch.randperm(len(task.train), generator=order_of(1000 + seed))[:SAMPLES].tolist()
    with torch.random.fork_rng(devices=[]):
        x, y = task.train.__getitems__(chosen)
    return x, y


def _sharpness(
    task: UntunedTask, model: nn.Module, optimizer: Optimizer, weights: list[nn.Parameter], x: Tensor, y: Tensor
) -> dict[str, Any]:
    lengths = step_lengths(optimizer, weights)
    with gauss_newton(model, task.loss_func, x, y, lengths) as product:
        found, products = largest_eigenvalue(product, len(lengths))
    return {"sharpness": rounded(found), "products": products, "limit": rounded(stability_limit(optimizer))}


def cheaper(window: list[Step]) -> dict[str, float | None]:
    """The three quantities of steps in succession, each pooled as a ratio of sums."""
    length = changed = along = 0.0
    for step in window:
        seen = step.lengths > 0
        length += (step.moved[seen] ** 2 / step.lengths[seen]).sum().item()
        along += (step.moved @ (step.after - step.before)).item()
        changed += (step.lengths * (step.after - step.before) ** 2).sum().item()
    between = sum((a.lengths * (b.before - a.before) ** 2).sum().item() for a, b in pairwise(window))
    between *= len(window) / (len(window) - 1)  # one step fewer has a successor
    return {
        "along": rounded(along / length),
        "change": rounded((changed / length) ** 0.5),
        "between": rounded((between / length) ** 0.5),
    }


def phi_by(rows: Mapping[Key, Row], task: str, rate: float, kind: str) -> float | None:
    """64 x limit/(lr x curvature), the harmonic mean over points and seeds; inf where the mean is not above 0.

    Args:
        kind: one of `KINDS`.
    """
    shares = [
        reading[kind] / reading["limit"]
        for (name, rule, _), row in rows.items()
        for reading in row["readings"]
        if (name, rule) == (task, name_of(rate))
    ]
    if not shares:
        return None
    mean = statistics.fmean(shares)
    return BASE / mean if mean > 0 else math.inf
