"""Persistence: how far the gradient still points where the average of the steps before it points.

It was to tell a learning rate that is too low. It is read at fixed 64 and at several learning rates, as
rho = <m, G>/|G|^2, m being the average of the gradients of the steps before (decay .9, its bias corrected) and G the
true gradient. Both products are unbiased, because they are of gradients of different samples.

1: all steps so far point the same way. -.1/1.9 = -.053: the loss falls no more, as in the long run of any step that is
stable, whatever its learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.quality.results import Row, rounded
from benchmarks.quality.tasks import BASE
from benchmarks.quality.training import Watch, as_it_is, epochs_of, order_of, row_of
from benchmarks.quality.untuned.tasks import UntunedTask

READINGS, SAMPLES, DECAY = 30, 256, 0.9
EARLY, MIDDLE = (0.0, 0.1), (0.15, 0.6)  # shares of the run that readings are pooled over


def name_of(rate: float) -> str:
    """The name of the runs at this multiple of the best learning rate."""
    return f"lr x {rate:g}"


def persistence_run(task: UntunedTask, rate: float, seed: int) -> Row:
    """Train at fixed 64, and read (progress, <m, G>, |G|^2) on the way."""
    task = replace(task, lr=rate * task.lr)
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, task.lr)
    scheduler = task.make_scheduler(optimizer, BASE)
    weights = [p for p in model.parameters() if p.requires_grad]
    steps = task.epochs * -(-len(task.train) // BASE)
    due = {max(2, round(steps * (i + 1) / (READINGS + 1))) for i in range(READINGS)}
    fresh, mean = _fresh_batches(task, seed), torch.zeros(sum(p.numel() for p in weights))
    watch, readings = Watch(task, model, lambda: 0.0, looks=()), []
    for batches in epochs_of(task, BASE, seed):
        for x, y in batches:
            if watch.steps in due:
                one, other = (gradient(task, model, weights, *next(fresh)) for _ in range(2))
                before = mean / (1 - DECAY**watch.steps)
                values = watch.steps / steps, (before @ (one + other)).item() / 2, (one @ other).item()
                readings.append([rounded(value) for value in values])
            optimizer.zero_grad()
            task.loss_func(model(x), y).backward()
            mean.lerp_(flat([p.grad for p in weights], weights), 1 - DECAY)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            watch.step(len(y))
    watch.end()
    return row_of(task, name_of(rate), seed, watch) | {"readings": readings}


def persistence(readings: list[list[float]], span: tuple[float, float]) -> float:
    """Rho of the readings within this span of the run."""
    within = [(dot, square) for progress, dot, square in readings if span[0] <= progress < span[1]]
    return sum(dot for dot, _ in within) / sum(square for _, square in within)


def _fresh_batches(task: UntunedTask, seed: int) -> Iterator[Any]:
    order = order_of(1000 + seed)
    while True:
        with torch.random.fork_rng(devices=[]):
            batches = list(DataLoader(task.train, SAMPLES, shuffle=True, generator=order, collate_fn=as_it_is))
        yield from batches[:-1]


def gradient(task: UntunedTask, model: nn.Module, weights: list[nn.Parameter], x: Any, y: Any) -> Tensor:
    """The gradient of these samples, of which training notices nothing."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        found = torch.autograd.grad(task.loss_func(model(x), y), weights, allow_unused=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return flat(found, weights)


def flat(gradients: Any, weights: list[nn.Parameter]) -> Tensor:
    parts = (torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True))
    return torch.cat([part.detach().flatten() for part in parts])
