"""The results of the grid, a line a task, optimizer and pair of seeds; and regret, place and rank from them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.machine import RESULTS, machine
from benchmarks.quality.transfer_grid.rules import Kind
from benchmarks.quality.transfer_grid.tasks import BY_NAME, TASKS

PATH = RESULTS / "transfer_grid.jsonl"
GROWTHS = (2, 4, 8, 16, 32)
SEEDS = ((0, 1), (2, 3))
WORST = 10_000  # hundredths of a percent: a loss of twice that of the base batch, or none at all
HALVES = ("digits, labels wrong", "letters, network", "teacher and student"), (
    "digits, denoised", "letters, transformer", "rare words",
)  # fmt: skip


def excess(losses: Sequence[float], base: Sequence[float]) -> list[int]:
    """By how much each loss is above that of the same seed at the base batch, in hundredths of a percent."""
    ratios = ((loss / at_base - 1) * 1e4 for loss, at_base in zip(losses, base, strict=True))
    return [round(min(ratio, WORST)) if math.isfinite(ratio) else WORST for ratio in ratios]


class Results:
    """The lines found so far, on disk at once."""

    def __init__(self, path: Path = PATH) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.header: dict[str, Any] = json.loads(lines[0]) if lines else {}
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]

    def row(self, task: str, optimizer: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        """The line of these, if it has been made."""
        these = task, optimizer, list(seeds)
        return next((r for r in self.rows if (r["task"], r["optimizer"], r["seeds"]) == these), None)

    def add(
        self, task: str, optimizer: str, seeds: Sequence[int], about: dict[str, Any], found: list[list[list[int]]]
    ) -> None:
        """Keep what a task and an optimizer gave with these seeds.

        Args:
            about: learning rate and weight decay, phi at the looks, and the losses of the base batch.
            found: `excess` by k, rule and seed.
        """
        if not self.header:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self.header = {"machine": machine(), "date": now}
            self._path.write_text(json.dumps(self.header) + "\n")
        row = {"task": task, "optimizer": optimizer, "seeds": list(seeds), **about, "excess": found}
        with self._path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
        self.rows.append(row)

    def of(self, kind: Kind, tasks: Collection[str] | None = None) -> np.ndarray:
        """Excess in percent, shape (tasks, k, rules, seeds), of the tasks that are done and the seeds they all have.

        Args:
            kind: the optimizer.
            tasks: the names of those wanted; None for all.
        """
        names = [name for name in self.tasks(kind) if tasks is None or name in tasks]
        rows = [[self.row(name, kind.name, seeds) for name in names] for seeds in SEEDS]
        whole = [[row["excess"] for row in pair if row] for pair in rows if None not in pair]
        return np.concatenate([np.array(pair, float) for pair in whole], axis=-1) / 100


    def tasks(self, kind: Kind) -> list[str]:
        """The names of the tasks that are done."""
        return [task.name for task in TASKS if self.row(task.name, kind.name, SEEDS[0])]

    def sizes(self, kind: Kind) -> np.ndarray:
        """The batch over B_simple, its harmonic mean over the rest of the run at the base batch; shape (tasks, k)."""
        names = self.tasks(kind)
        rows = [self.row(name, kind.name, SEEDS[0]) for name in names]
        phi = [1 / np.mean(1 / np.array(row["phi"])) for row in rows if row]
        batches = np.outer([BY_NAME[name].base_batch for name in names], GROWTHS)
        return batches / np.array(phi)[:, None]


def regrets(excess: np.ndarray) -> np.ndarray:
    """Percent of the loss that each rule is above the best rule of its cell, a task and k: (tasks, k, rules).

    Args:
        excess: (tasks, k, rules, seeds).
    """
    means = excess.mean(-1)
    return means - means.min(-1, keepdims=True)


def mean_regrets(excess: np.ndarray) -> np.ndarray:
    """Mean of the regrets over tasks and k, (rules,)."""
    return regrets(excess).mean((0, 1))


def mean_ranks(excess: np.ndarray) -> np.ndarray:
    """Mean over tasks and k of the share of rules that are better than each, 0 to 1, (rules,)."""
    means = excess.mean(-1)
    better = (means[..., None, :] < means[..., :, None]).sum(-1)
    return (better / (means.shape[-1] - 1)).mean((0, 1))


def place(values: np.ndarray, rule: int) -> int:
    """1 for the least."""
    return int((values < values[rule]).sum()) + 1


def difference(excess: np.ndarray, rule: int, other: int) -> tuple[float, float]:
    """Mean excess of a rule less that of another, percent, and its standard error over the tasks."""
    by_task = (excess[:, :, rule] - excess[:, :, other]).mean((1, 2))
    return float(by_task.mean()), float(by_task.std(ddof=1) / math.sqrt(len(by_task)))


def chosen_on_half(excess_of: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The best rule of each half of tasks and seeds, and the mean regrets of all rules on the other half.

    Args:
        excess_of: of the two halves of the tasks. The first is looked at by its even seeds, the second by its odd ones.
    """
    halves = [mean_regrets(part[..., i::2]) for i, part in enumerate(excess_of)]
    return [(int(halves[i].argmin()), halves[1 - i]) for i in (0, 1)]
