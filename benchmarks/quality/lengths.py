"""How many more samples a larger batch takes for the same progress: runs of many lengths, beside what was predicted.

The base run is fixed 64 over the task's epochs, with its noise scale measured on the way. The same is trained at
larger batches for once to four times the epochs, each with the whole schedule, hyperparameters transferred. The
samples that a larger batch takes are read off where its loss, between two lengths, comes to that of the base run: the
training loss, which is what the theory is about, and the held-out metric.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch

from adaptbs import AdaptiveDataLoader
from adaptbs.decision.policy import critical_over_simple
from adaptbs.report.trade_off import samples_ratio
from benchmarks.quality.results import FEW, Part, Row, rounded
from benchmarks.quality.rules import STEP_TIMES, Fixed
from benchmarks.quality.tasks import BASE, Task
from benchmarks.quality.training import Watch, as_it_is, epochs_of, order_of, row_of, train

SIZES = (256, 1024)
TIMES = (1, 1.5, 2, 3, 4)  # the task's epochs; rounded up
MEASURED = f"fixed {BASE}, measured"
SEEN = 20_000  # training samples that the training loss is taken over
LOSSES = {"training_loss": "training loss", "metric": "held-out metric"}


def lengths_of(task: Task) -> list[int]:
    """Epochs of the runs of each larger batch."""
    return sorted({math.ceil(task.epochs * times) for times in TIMES})


def rule_of(size: int, epochs: int) -> str:
    return f"fixed {size}, {epochs} epochs"


def length_run(task: Task, rule: Fixed, epochs: int, seed: int) -> Row:
    """Train at a fixed batch for so many epochs."""
    task = replace(task, epochs=epochs)
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, *rule.hyperparameters(task))
    scheduler = task.make_scheduler(optimizer, rule.batch_size)
    watch = Watch(task, model, lambda: 0.0, looks=())
    train(task, model, optimizer, scheduler, epochs_of(task, rule.batch_size, seed), watch.step)
    watch.end()
    row = row_of(task, rule_of(rule.batch_size, epochs), seed, watch)
    return row | {"size": rule.batch_size, "training_loss": training_loss(task, model)}


def measured_run(task: Task, seed: int) -> Row:
    """The base run, through a loader that measures and changes nothing; what it says of larger batches."""
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, *Fixed(BASE).hyperparameters(task))
    scheduler = task.make_scheduler(optimizer, BASE)
    loader = AdaptiveDataLoader(
        task.train, BASE, shuffle=True, generator=order_of(seed), collate_fn=as_it_is, max_batch_size=BASE,
        model=model, optimizer=optimizer, loss_func=task.loss_func, scheduler=scheduler, epochs=task.epochs,
        step_time=tuple(STEP_TIMES["gpu"]),
    )  # fmt: skip
    watch = Watch(task, model, lambda: 0.0, looks=())
    train(task, model, optimizer, scheduler, (loader for _ in range(task.epochs)), watch.step)
    watch.end()
    said = loader.trade_off()
    loader.close()
    row = row_of(task, MEASURED, seed, watch) | {"size": BASE, "training_loss": training_loss(task, model)}
    return row | {
        "phi": None if said.phi is None else rounded(said.phi), "low": rounded(said.low), "high": rounded(said.high),
        "critical_over_simple": critical_over_simple(task.adams is not None), "lengths": lengths_of(task),
    }  # fmt: skip


def training_loss(task: Task, model: torch.nn.Module) -> float | None:
    """Over the first so many training samples, in eval mode."""
    model.eval()
    x, y = (tensor[:SEEN] for tensor in task.train.tensors)
    with torch.no_grad():
        parts = zip(x.split(1000), y.split(1000), strict=True)
        losses = [(task.loss_func(model(a), b).item(), len(a)) for a, b in parts]
    model.train()
    return rounded(sum(loss * n for loss, n in losses) / len(y), 7)


def samples_needed(samples: Sequence[float], losses: Sequence[float | None], aim: float) -> float:
    """The samples at which a row of ever longer runs comes to a loss; None is that of a run that diverged.

    Between two lengths the loss is taken to fall evenly in their logarithms; of several crossings the first counts.

    Returns:
        0 where the shortest has come further already, inf where none comes so far.
    """
    known = [math.inf if loss is None else loss for loss in losses]
    if known[0] < aim:
        return 0.0
    for (n0, above), (n1, below) in pairwise(zip(samples, known, strict=True)):
        if below <= aim:
            share = math.log(above / aim) / math.log(above / below) if math.isfinite(above) and above > below else 1.0
            return float(n0 * (n1 / n0) ** share)
    return math.inf


class Compared(NamedTuple):
    """Samples over the base run's, for the same progress: as predicted, and as it came out.

    Attributes:
        phi: the noise scale, samples, the median over seeds.
        simple: predicted from that.
        critical: predicted from the critical batch that decisions go by, for Adam four times as large.
        needed: by the name of the loss, seed by seed; see `samples_needed`.
    """

    phi: float
    simple: float
    critical: float
    needed: dict[str, list[float]]


def compared(task: str, size: int, part: Part) -> Compared | None:
    """Predictions and runs at a size; None until all have been made, or where no seed has a noise scale."""
    needed: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    phis, times_simple = [], 1.0
    for seed in FEW:
        base = part.rows.get((task, MEASURED, seed))
        runs = [row for (name, _, s), row in part.rows.items() if (name, s, row["size"]) == (task, seed, size)]
        if base is None or base["phi"] is None or len(runs) < len(base["lengths"]):
            return None
        runs.sort(key=lambda row: row["samples"])
        phis.append(base["phi"])
        times_simple = base["critical_over_simple"]
        for loss, found in needed.items():
            aim = samples_needed([run["samples"] for run in runs], [run[loss] for run in runs], base[loss])
            found.append(aim / base["samples"])
    phi = statistics.median(phis)
    simple, critical = (samples_ratio(by * phi, size, BASE) for by in (1.0, times_simple))
    return Compared(phi, simple, critical, needed)
