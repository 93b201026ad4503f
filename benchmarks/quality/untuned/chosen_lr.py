"""The learning rate of a task: the best of those tried at a fixed batch of 64."""

from __future__ import annotations

import statistics
from dataclasses import replace

from benchmarks.quality.results import Part
from benchmarks.quality.untuned.compared import FOLDER
from benchmarks.quality.untuned.tasks import UntunedTask

LR_SEEDS = (0, 1)


def with_chosen_lr(task: UntunedTask) -> UntunedTask:
    """The task at the learning rate of least mean error in the part `base_lr`."""
    rows = Part("base_lr", FOLDER).rows
    if missing := [lr for lr in task.lrs for seed in LR_SEEDS if (task.name, f"lr {lr:g}", seed) not in rows]:
        raise SystemExit(f"{task.name} has not been run at the learning rates {missing}: run the part base_lr first")

    def error(lr: float) -> float:
        found = [rows[task.name, f"lr {lr:g}", seed]["metric"] for seed in LR_SEEDS]
        return statistics.fmean(float("inf") if metric is None else metric for metric in found)

    return replace(task, lr=min(task.lrs, key=error))
