"""Rules of the quality benchmark compared with the fixed batch of 64, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.quality.margins import MEASURES
from benchmarks.quality.results import (
    REPORTED,
    Key,
    Part,
    Row,
    best_of,
    censored_median,
    relative_differences,
    time_to_target,
    upper_limit,
)
from benchmarks.quality.rules import MULTIPLIERS, STEP_TIMES, Fixed, seconds_at

FIXED = "fixed 64"
PARTS = ("fixed", "fixed_beta1", "fixed_small", "own_lr", "adaptive", "peers", "ablations")


@dataclass(frozen=True)
class Compared:
    """A rule on a task against fixed 64, ratios being ours / fixed.

    Attributes:
        metric: mean over seeds; None where a run diverged.
        difference: mean of ours / fixed - 1.
        limit: its one-sided upper 95 % limit.
        passed: whether that is below the task's margin.
        steps, samples: medians of ratios.
        times: medians of ratios of modelled seconds, by model; those that the rule was run for.
        targets: ratios of the median seconds to the target, by model; None where half of the runs or more never got
            there.
        missed: how many runs never got to the target.
        seeds: how many.
    """

    metric: float | None
    difference: float
    limit: float
    passed: bool
    steps: float
    samples: float
    times: Mapping[str, float]
    targets: Mapping[str, float | None]
    missed: int
    seeds: int


@cache
def rows() -> dict[Key, Row]:
    """Everything run so far, real seconds left out."""
    return {key: row for part in PARTS for key, row in Part(part).rows.items()}


def compared(
    task: str, rule: str, found: Mapping[Key, Row] | None = None, seeds: Sequence[int] = REPORTED
) -> Compared | None:
    """A rule against fixed 64 on those of the reported seeds that both have been run on; None for fewer than two."""
    found = rows() if found is None else found
    seeds = [seed for seed in seeds if {(task, rule, seed), (task, FIXED, seed)} <= set(found)]
    if len(seeds) < 2:
        return None
    ours, fixed = ([found[task, name, seed] for seed in seeds] for name in (rule, FIXED))
    differences = relative_differences([row["metric"] for row in ours], [row["metric"] for row in fixed])
    limit, margin = upper_limit(differences), MEASURES[task].margin
    target = statistics.fmean(row["metric"] for row in fixed) * (1 + margin)
    finite = all(row["metric"] is not None for row in ours)
    times: dict[str, float] = {}
    targets: dict[str, float | None] = {}
    missed = 0
    for model in models_of(rule, ours[0]):
        times[model] = _ratio(ours, fixed, lambda row, model=model: total_seconds(row, model))
        reached = [time_to_target(curve_of(row, model), target) for row in ours]
        before = censored_median([time_to_target(curve_of(row, model), target) for row in fixed])
        after = censored_median(reached)
        targets[model] = None if before is None or after is None else after / before
        missed = reached.count(None)
    return Compared(
        statistics.fmean(row["metric"] for row in ours) if finite else None,
        statistics.fmean(differences), limit, limit < margin,
        _ratio(ours, fixed, lambda row: row["steps"]), _ratio(ours, fixed, lambda row: row["samples"]),
        times, targets, missed, len(seeds),
    )  # fmt: skip


def models_of(rule: str, row: Row) -> tuple[str, ...]:
    """The step times that a run's seconds are known for: its own, or all where it neither asked nor charged any."""
    own = rule.rpartition(" ")[2]
    if own in STEP_TIMES:
        return (own,)
    return ("gpu",) if "seconds" in row else tuple(STEP_TIMES)  # (those that name none were run for the GPU's)


def total_seconds(row: Row, model: str) -> float:
    """What a run is charged: measured along it, or what its steps take where nothing else was done."""
    return row["seconds"] if "seconds" in row else seconds_at(model, row["steps"], row["samples"])


def curve_of(row: Row, model: str) -> list[tuple[float, float | None]]:
    """(seconds, metric) of a run's looks."""
    curve = row["curve"]
    seconds = curve.get("seconds") or [
        seconds_at(model, steps, samples) for steps, samples in zip(curve["steps"], curve["samples"], strict=True)
    ]
    return list(zip(seconds, curve["metric"], strict=True))


def own_best(task: str, size: int) -> Fixed | None:
    """A fixed batch at the best of the learning rates tried in `own_lr`; None until all have been."""
    rules = {rule.name: rule for rule in (Fixed(size, multiplier) for multiplier in MULTIPLIERS)}
    chosen = best_of(list(rules), task, Part("own_lr"))
    return rules[chosen] if chosen else None


def fastest_fixed(task: str, model: str, sizes: Sequence[int]) -> tuple[int, Compared] | None:
    """The fixed batch, by either transfer rule or at its own learning rate, no worse than 64, that takes least time."""
    own = [(size, rule.name) for size in sizes if (rule := own_best(task, size))]
    names = [*own, *((size, f"fixed {size}{rule}") for size in sizes for rule in ("", " beta1^k"))]
    candidates = [(size, compared(task, name)) for size, name in names]
    passed = [(size, c) for size, c in candidates if c is not None and (c.passed or size == 64)]
    return min(passed, key=lambda pair: pair[1].times[model]) if passed else None


def _ratio(ours: Sequence[Row], fixed: Sequence[Row], field: Callable[[Row], float]) -> float:
    pairs = zip(ours, fixed, strict=True)
    return statistics.median(field(a) / field(b) for a, b in pairs)
