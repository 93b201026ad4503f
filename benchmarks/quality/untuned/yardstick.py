"""The critical batch that runs ask for, beside the noise scale, at three learning rates.

The base run is fixed 64, with its noise scale measured on the way. The same is trained at larger batches that stay,
with the hyperparameters transferred as the package does it, for ever more samples, until it comes to the training loss
of the base run, which is what the theory is about, and to its held-out error. Each run has the whole of its schedule.
n1 samples in place of n0 say, by (phi + B)/(phi + B0) = n1/n0, what phi is: the critical batch of McCandlish et al.
(2018, eq. 2.11, arXiv:1812.06162).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from adaptbs import AdaptiveDataLoader
from adaptbs.decision import Situation, decide
from adaptbs.types import Decision, Target
from benchmarks.quality.adaptive import patched
from benchmarks.quality.lengths import samples_needed
from benchmarks.quality.results import Key, Row, rounded
from benchmarks.quality.rules import STEP_TIMES
from benchmarks.quality.tasks import BASE
from benchmarks.quality.training import Watch, as_it_is, order_of, row_of, train
from benchmarks.quality.untuned.tasks import UntunedTask

SIZES = (256, 1024)
TIMES = (1, 1.5, 2.25, 3.4)  # the samples of the base run
SEEDS = range(10, 12)
LOSSES = ("training_loss", "metric")
SEEN = 5000  # training samples that the training loss is taken over
SHARE = (0.12, 0.66)  # of the base run, over which the noise scale is averaged: past the warm-up, before the last steps
OVERHEAD = 0.1  # of measuring the base run, which costs no quality


def rule_of(rate: float, size: int, times: float) -> str:
    return f"lr x{rate:g}, fixed {size}, samples x{times:g}"


class Passes(torch.utils.data.Sampler[int]):
    """`samples` indices of a dataset: random passes over it, one after another, the last of them cut off."""

    def __init__(self, dataset_samples: int, samples: int, generator: torch.Generator) -> None:
        self._dataset_samples, self._samples, self._generator = dataset_samples, samples, generator

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self._samples, self._dataset_samples):
            order = torch.randperm(self._dataset_samples, generator=self._generator).tolist()
            yield from order[: self._samples - start]


def held(now: Situation, target: str | Target) -> Decision:
    """The decision that the package makes, but that the batch stays."""
    return replace(decide(now, target), batch_size=now.batch_size)


def run(task: UntunedTask, rate: float, size: int, times: float, seed: int) -> Row:
    """Train at a batch that stays, over so many times the samples of the task's epochs."""
    task = replace(task, lr=rate * task.lr)
    steps = max(1, round(times * task.epochs * len(task.train) / size))
    model = task.make_model(seed)
    optimizer = task.make_optimizer(model, task.lr)
    scheduler = task.schedule(optimizer, steps) if task.schedule else None
    samples = Passes(len(task.train), steps * size, order_of(seed))
    with patched({"adaptbs.run.rules.decide": held}):
        loader = AdaptiveDataLoader(
            task.train, size, sampler=samples, collate_fn=as_it_is, max_batch_size=size, base_batch_size=BASE,
            model=model, optimizer=optimizer, loss_func=task.loss_func, scheduler=scheduler, epochs=1,
            budget="epochs", step_time=tuple(STEP_TIMES["gpu"]), overhead=OVERHEAD if size == BASE else None,
        )  # fmt: skip
        # SGD's learning rate is limited as in a run that grew to this size, not as in one that was told to begin at it.
        loader.training_run.controller.rules._start = BASE
        watch = Watch(task, model, lambda: 0.0, looks=())
        train(task, model, optimizer, scheduler, [loader], watch.step)
    watch.end()
    row = row_of(task, rule_of(rate, size, times), seed, watch)
    row |= {"rate": rate, "size": size, "times": times, "training_loss": training_loss(task, model)}
    if size == BASE:
        row |= mean_noise_scale(loader)
    loader.close()
    return row


def training_loss(task: UntunedTask, model: nn.Module) -> float | None:
    """Over the first training samples, in eval mode; what is drawn for each of them is the same for every run."""
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [task.train.__getitems__(range(i, i + 1000)) for i in range(0, min(SEEN, len(task.train)) - 999, 1000)]
        losses = [task.loss_func(model(x), y).item() for x, y in parts]
    model.train()
    return rounded(statistics.fmean(losses), 7)


def mean_noise_scale(loader: AdaptiveDataLoader) -> Row:
    """The harmonic mean of B_simple over `SHARE` of a run, measurement by measurement; None if |G|^2 is not above 0."""
    made = [
        record["grad_sq"] / record["trace"]
        for record in loader.history
        if record["event"] == "measurement" and record["trace"] and SHARE[0] <= record["progress"] <= SHARE[1]
    ]
    mean = statistics.fmean(made) if made else 0.0
    return {"measurements": len(made), "simple": rounded(1 / mean) if mean > 0 else None}


def errors(
    rows: Mapping[Key, Row], task: str, rate: float, size: int, seeds: Sequence[int], loss: str
) -> list[float]:
    """The mean of a loss over seeds at each of `TIMES`, as far as all have been run; inf where one diverged."""
    means = []
    for times in TIMES:
        found = [rows.get((task, rule_of(rate, size, times), seed)) for seed in seeds]
        if None in found:
            break
        means.append(statistics.fmean(math.inf if row[loss] is None else row[loss] for row in found if row))
    return means


def next_times(rows: Mapping[Key, Row], task: str, rate: float, size: int, seeds: Sequence[int]) -> float | None:
    """How long the next run has to be; None once both losses have come to those of the base run, or the last is run."""
    left = []
    for loss in LOSSES:
        base = errors(rows, task, rate, BASE, seeds, loss)
        if not base:
            return TIMES[0]
        made = errors(rows, task, rate, size, seeds, loss)
        reached = bool(made) and min(made) <= base[0]
        left.append(math.isfinite(base[0]) and not reached)
    return TIMES[len(made)] if size != BASE and any(left) and len(made) < len(TIMES) else None


class Found(NamedTuple):
    """The samples that a batch needs over those of the base run, and the critical batch that this comes to.

    Attributes:
        needed: 0 if the base run's samples are enough, inf if the longest run does not get there.
        phi: inf in the first case. In the second it is the largest that it may be.
    """

    needed: float
    phi: float


def found(
    rows: Mapping[Key, Row], task: str, rate: float, size: int, seeds: Sequence[int], loss: str
) -> Found | None:
    """What a size needs, by the mean loss of seeds that are complete; None if the base run diverged."""
    base = errors(rows, task, rate, BASE, seeds, loss)[0]
    if not math.isfinite(base):
        return None
    made = errors(rows, task, rate, size, seeds, loss)
    needed = samples_needed(TIMES[: len(made)], made, base)
    return Found(needed, phi_of(min(needed, TIMES[-1]), size))


def phi_of(needed: float, size: int) -> float:
    """phi of (phi + B)/(phi + B0) = needed; 0 where even B/B0 times the samples would not do, inf where B0's will."""
    return max(0.0, (size - BASE * needed) / (needed - 1)) if needed > 1 else math.inf


def complete(rows: Mapping[Key, Row], task: str, rate: float) -> list[int]:
    """The seeds, from the first on, with which nothing is left to be run."""
    for count in range(len(SEEDS), 0, -1):
        seeds = list(SEEDS[:count])
        if all(next_times(rows, task, rate, size, seeds) is None for size in (BASE, *SIZES)):
            return seeds
    return []


def simple(rows: Mapping[Key, Row], task: str, rate: float, seeds: Sequence[int]) -> float | None:
    """The mean noise scale of the base runs: the harmonic mean over seeds; None where it is not known."""
    made = [rows[task, rule_of(rate, BASE, 1), seed]["simple"] for seed in seeds]
    return statistics.harmonic_mean(made) if made and None not in made else None


def spreads(rows: Mapping[Key, Row], loss: str) -> tuple[float, float] | None:
    """The factors by which phi and B_simple of one seed differ from another's, the medians; None for one seed."""
    of_phi, of_simple = [], []
    for task, rate in dict.fromkeys((row["task"], row["rate"]) for row in rows.values()):
        seeds = complete(rows, task, rate)
        for size in (BASE, *SIZES):
            if size == BASE:
                made = [simple(rows, task, rate, [seed]) for seed in seeds]
            else:
                each = [found(rows, task, rate, size, [seed], loss) for seed in seeds]
                made = [one.phi if one and 1 < one.needed < math.inf else None for one in each]
            known = [value for value in made if value]
            if len(known) == len(seeds) > 1:
                (of_simple if size == BASE else of_phi).append(max(known) / min(known))
    return (statistics.median(of_phi), statistics.median(of_simple)) if of_phi and of_simple else None
