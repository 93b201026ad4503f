"""What each estimator adds to a plain training step: time, and memory in gradients."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from adaptbs.gradients.halves import GradientPool, HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.common.per_example import PerExample
from benchmarks.noise_scale.cases import BATCH, PARTS, Case, Run, Task, batches
from benchmarks.noise_scale.rivals import (
    Consecutive,
    LastBatch,
    MovingAverages,
    PreviousGradient,
    Stored,
    TwoRuns,
    numbers_kept,
)

GROUP = 20  # the rivals' n: what they do once a group shows in one step of 20
GROUPS = 10
RIVALS = {"A": MovingAverages, "B": Stored, "D1": LastBatch, "D2": Consecutive, "AdaptDL": PreviousGradient}


class Accumulating:
    """A step whose gradient is accumulated over parts anyway, without and with a look at the parts."""

    def __init__(self, run: Run, measuring: bool) -> None:
        self.run, self.measuring = run, measuring

    def __call__(self, batch: list[torch.Tensor]) -> None:
        parameters = list(self.run.model.parameters())
        self.run.optimizer.zero_grad()
        pool, size = GradientPool(BATCH // PARTS), BATCH // PARTS
        for start in range(0, BATCH, size):
            *inputs, target = (t[start : start + size] for t in batch)
            (self.run.task.loss_func(self.run.model(*inputs), target) / PARTS).backward()
            if self.measuring:  # (the part's own gradient is the accumulated one less the one before: one more copy)
                now = [p.grad.clone() for p in parameters]
                before = now if start == 0 else [a - b for a, b in zip(now, self.last, strict=True)]
                pool.add([g * PARTS for g in before])
                self.last = now
        if self.measuring:
            pool.norms()
            del self.last
        self.run.optimizer.step()


def kinds(task: Task) -> tuple[dict[str, Callable[[list[torch.Tensor]], object]], dict[str, object]]:
    """Ways to make a step, and the estimators among them that hold tensors between steps."""

    def fresh() -> Run:
        return Run(Case("", "SGD", 0.01, 0), task, seed=0)

    def plain(run: Run, batch: list[torch.Tensor]) -> None:
        run.backward(batch)
        run.update()

    steps: dict[str, Callable] = {"plain": partial(plain, fresh())}
    estimators: dict[str, object] = {}
    for name, kind in RIVALS.items():
        run, estimators[name] = fresh(), kind(BATCH)
        steps[name] = lambda batch, run=run, rival=estimators[name]: rival.add(run.step(batch))
    small, large, two = fresh(), fresh(), TwoRuns(BATCH)
    estimators["C"] = two
    steps["C"] = lambda batch: two.add(small.step(batch), large.step([torch.cat([t, t]) for t in batch]))
    for name, source in (("halves", HalfBatches), ("per example", PerExample)):
        run = fresh()
        if name == "per example" and run.couples_samples:
            continue
        estimators[name] = source(run.model, BatchLoss(task.loss_func))
        steps[name] = lambda batch, run=run, one=estimators[name]: (one.measure(batch), plain(run, batch))
    steps["accumulating"] = Accumulating(fresh(), measuring=False)
    steps["micro-batches"] = Accumulating(fresh(), measuring=True)
    return steps, estimators


def peak(steps: Callable[[], object]) -> int:
    """The most bytes allocated at once beyond what was there before the call, by the allocator's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        steps()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def of_task(task: Task) -> dict:
    """Steps that take turns; `micro-batches` beside a step that accumulates anyway, the rest beside a plain one."""
    steps, estimators = kinds(task)
    source = batches(task, BATCH, torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    kept = dict.fromkeys(estimators, 0)
    for _ in range((1 + GROUPS) * GROUP):
        batch = next(source)
        for name, step in steps.items():
            begin = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - begin)
        for name, estimator in estimators.items():
            kept[name] = max(kept[name], numbers_kept(estimator))
    # The first group warms up; then the median of every place in a group, and the mean over places.
    each = {name: float(np.median(np.reshape(s, (-1, GROUP))[1:], 0).mean()) for name, s in seconds.items()}
    one = sum(p.numel() for p in task.make().parameters())
    most = {name: peak(lambda step=step: [step(batch) for _ in range(GROUP)]) for name, step in steps.items()}
    result = {}
    for name in (*estimators, "micro-batches"):
        base = "accumulating" if name == "micro-batches" else "plain"
        result[name] = {
            "extra_time": round(each[name] / each[base] - 1, 3),
            "kept": round(kept.get(name, 0) / one, 2),
            "extra_peak": round((most[name] - most[base]) / one / torch.finfo(torch.float).bits * 8, 2),
        }
    return {"step_ms": round(1000 * each["plain"], 3), "parameters": one, "estimators": result}


def compare(tasks: dict[str, Task]) -> dict:
    return {name: of_task(task) for name, task in tasks.items()}
