"""One training run of the quality benchmark: the loop that fixed and adaptive batches share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from benchmarks.quality.results import Row, rounded
from benchmarks.quality.rules import Fixed
from benchmarks.quality.tasks import Task

LOOKS = tuple(0.5 + i / 40 for i in range(20))  # shares of the run after which the held-out error is looked at


def as_it_is(batch: Any) -> Any:
    """collate_fn of batches that are cut as tensors."""
    return batch


def order_of(seed: int) -> torch.Generator:
    """Of the samples: the same for every rule."""
    return torch.Generator().manual_seed(seed)


@dataclass
class Watch:
    """Counts a run, and looks at its held-out error on the way, in time that nobody is charged for.

    Attributes:
        curve: (steps, samples, seconds, metric) at each look, the last one at the end of the run.
    """

    task: Task
    model: nn.Module
    progress: Callable[[], float]  # share of the run done
    seconds: Callable[[], float] = lambda: math.nan  # charged so far, where a clock is injected
    looks: tuple[float, ...] = LOOKS
    steps: int = 0
    samples: int = 0
    curve: list[tuple[int, int, float, float]] = field(default_factory=list)

    def step(self, samples: int) -> None:
        """Take note of a step that has been made."""
        self.steps, self.samples = self.steps + 1, self.samples + samples
        if len(self.curve) < len(self.looks) and self.progress() >= self.looks[len(self.curve)]:
            due = sum(look <= self.progress() for look in self.looks)
            point = self._look()
            self.curve += repeat(point, due - len(self.curve))  # one large step may pass several

    def end(self) -> None:
        self.curve.append(self._look())

    def _look(self) -> tuple[int, int, float, float]:
        self.model.eval()
        with torch.no_grad():
            metric = self.task.evaluate(self.model)
        self.model.train()
        return self.steps, self.samples, self.seconds(), metric


def train(
    task: Task,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    epochs: Iterable[Iterable[Any]],
    seen: Callable[[int], None],
) -> None:
    """The loop as a user writes it; `seen` is told the samples of each step."""
    for batches in epochs:
        for x, y in batches:
            optimizer.zero_grad()
            task.loss_func(model(x), y).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            seen(len(y))


def epochs_of(task: Task, batch_size: int, seed: int) -> Iterator[Iterable[Any]]:
    """Epochs of a stock loader."""
    loader = DataLoader(task.train, batch_size, shuffle=True, generator=order_of(seed), collate_fn=as_it_is)
    return repeat(loader, task.epochs)


def fixed_run(task: Task, rule: Fixed, seed: int, looks: tuple[float, ...] = LOOKS) -> Row:
    """Train at a fixed batch."""
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, *rule.hyperparameters(task))
    scheduler = task.make_scheduler(optimizer, rule.batch_size)
    looks = looks if task.watched else ()
    watch = Watch(task, model, lambda: watch.samples / (task.epochs * len(task.train)), looks=looks)
    train(task, model, optimizer, scheduler, epochs_of(task, rule.batch_size, seed), watch.step)
    watch.end()
    return row_of(task, rule.name, seed, watch)


def row_of(task: Task, rule: str, seed: int, watch: Watch) -> Row:
    """What is kept of a run; the curve as columns, without seconds where steps and samples give them."""
    steps, samples, seconds, metrics = zip(*watch.curve, strict=True)
    row: Row = {
        "task": task.name, "rule": rule, "seed": seed, "metric": rounded(metrics[-1], 7),
        "steps": watch.steps, "samples": watch.samples,
    }  # fmt: skip
    if len(watch.curve) > 1:
        row["curve"] = {"steps": steps, "samples": samples, "metric": [rounded(m) for m in metrics]}
        if not math.isnan(seconds[-1]):
            row["curve"]["seconds"] = [rounded(s) for s in seconds]
    if not math.isnan(seconds[-1]):
        row["seconds"] = rounded(seconds[-1])
    return row
