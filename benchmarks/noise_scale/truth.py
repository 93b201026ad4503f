"""Truth for `estimators.py`: over all pairs of samples at given weights, and two things that it depends on."""

from __future__ import annotations

import math

import numpy as np
import torch

from adaptbs.types import SquaredNorms
from benchmarks.noise_scale import exact
from benchmarks.noise_scale.cases import BATCH, CASES, PARTS, STEPS, Run, Task, trained


def truth_sizes(run: Run, every: bool) -> tuple[int, ...]:
    """The batch sizes whose expected gradients are wanted: 1 where they are all the same."""
    if not run.couples_samples:
        return (1,)
    return (BATCH // PARTS, BATCH // 2, BATCH) if every else (BATCH // 2,)


def truth(run: Run, size: int, samples: int | None, generator: torch.Generator) -> SquaredNorms:
    """Over all pairs of a random choice of samples, which is unbiased for the whole data set; exact for None."""
    chosen = torch.randperm(len(run.task.data[0]), generator=generator)[:samples]
    data = [t[chosen] for t in run.task.data]
    if size == 1:
        return exact.by_example(run.model, run.task.loss_func, *data)
    return exact.by_batches(run.model, run.task.loss_func, *data, size=size, generator=generator)


def unseen(task: Task, seed: int, windows: int = 16) -> dict:
    """|G|^2 over the samples that a window has not used, relative to all samples, at the end of windows.

    Those it has used are fitted a little. The next batch comes from the others, and so does every estimate from it.
    """
    case = next(case for case in CASES if case.name == "MLP, SGD 0.01, step 1000")
    start = trained(case, task, seed)
    found = []
    for number in range(windows):
        run = start.copy()
        order = torch.randperm(len(task.data[0]), generator=torch.Generator().manual_seed(seed + number))
        for chosen in order[: STEPS * BATCH].split(BATCH):
            run.step([t[chosen] for t in task.data])
        rest = order[STEPS * BATCH :]
        both = (task.data, [t[rest] for t in task.data])
        found.append([exact.by_example(run.model, task.loss_func, *data).grad_sq for data in both])
    every, others = np.array(found).T
    ratio = others.sum() / every.sum()
    se = (others - ratio * every).std(ddof=1) / math.sqrt(windows) / every.mean()
    return {"name": case.name, "windows": windows, **short({"ratio": ratio, "se": se})}


def short(values: dict) -> dict:
    """The same with four digits."""
    return {k: v if isinstance(v, int) else float(f"{v:.4g}") for k, v in values.items()}
