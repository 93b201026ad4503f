"""Predictors of the critical batch that runs ask for: the noise scale, the sharpness, and both of them.

All is compared in logarithms between `LEAST` and `MOST`, beyond which runs cannot tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adaptbs.decision import critical_over_simple
from benchmarks.common.markdown import markdown, where
from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.results import Key, Part, Row
from benchmarks.quality.untuned import yardstick
from benchmarks.quality.untuned.compared import FOLDER, RATES
from benchmarks.quality.untuned.persistence import name_of
from benchmarks.quality.untuned.sharpness import KINDS, phi_by

SGD = ("resnet", "housing_constant")  # tasks of the yardstick that are trained by it
LOSS, SIZE = "training_loss", 256  # by which runs tell it
LEAST, MOST = 16, 2048  # samples
FACTOR = 2  # within which a prediction counts as right


@dataclass(frozen=True)
class Case:
    """A task at a multiple of its best learning rate.

    Attributes:
        truth: the critical batch that runs ask for, samples.
        simple: the critical batch by B_simple and the rule's constant.
        sharp: the critical batches by the sharpness, and by what is cheaper.
    """

    task: str
    rate: float
    truth: float
    simple: float
    sharp: Mapping[str, float]


def cases() -> list[Case]:
    """All that have been run both ways, and whose noise scale is known."""
    runs, rows = Part("yardstick", FOLDER).rows, Part("sharpness", FOLDER).rows
    found = []
    for task in [task for task in UNTUNED if any(name == task for name, _, _ in rows)]:
        for rate in RATES:
            seeds = yardstick.complete(runs, task, rate)
            asked = yardstick.found(runs, task, rate, SIZE, seeds, LOSS) if seeds else None
            simple = yardstick.simple(runs, task, rate, seeds)
            sharp = {kind: phi for kind in KINDS if (phi := phi_by(rows, task, rate, kind)) is not None}
            if asked and simple and sharp:
                constant = critical_over_simple(adaptive=task not in SGD)
                found.append(Case(task, rate, _cut(asked.phi), _cut(constant * simple), sharp))
    return found


def _cut(phi: float) -> float:
    return min(max(phi, LEAST), MOST)


def by(kind: str) -> Callable[[Case], float]:
    return lambda case: case.sharp[kind]


PREDICTORS: dict[str, Callable[[Case], float]] = {
    "3 B_simple (1.5 for SGD)": lambda case: case.simple,
    "φ_sharp": by("sharpness"),
    "the smaller of the two": lambda case: min(case.simple, case.sharp["sharpness"]),
    "their geometric mean": lambda case: math.sqrt(case.simple * _cut(case.sharp["sharpness"])),
    "φ by the curvature along the step": by("along"),
    "φ by the change of a batch's gradient": by("change"),
    "φ by the change from batch to batch": by("between"),
}


def errors(found: Sequence[Case], predictor: Callable[[Case], float]) -> list[float]:
    """ln(prediction/truth) of each case."""
    return [math.log(_cut(predictor(case)) / case.truth) for case in found]


def off_by(made: Sequence[float]) -> float:
    """The factor that a prediction is off by, the median."""
    return math.exp(statistics.median(map(abs, made)))


def with_own_constant(found: Sequence[Case], predictor: Callable[[Case], float]) -> list[float]:
    """The same, if the predictor is given the factor that makes it right in the median of the other tasks."""
    made = errors(found, predictor)
    others = {
        task: statistics.median(e for e, case in zip(made, found, strict=True) if case.task != task)
        for task in {case.task for case in found}
    }
    return [e - others[case.task] for e, case in zip(made, found, strict=True)]


def correlation(found: Sequence[Case], predictor: Callable[[Case], float]) -> float:
    """Of the logarithms, over tasks and rates."""
    return statistics.correlation(
        [math.log(_cut(predictor(case))) for case in found], [math.log(case.truth) for case in found]
    )


def changes(found: Sequence[Case], predictor: Callable[[Case], float]) -> list[float]:
    """ln(how the prediction changes/how the truth does) from a rate to the next, on the tasks of Adam's kin."""
    made = dict(zip(((case.task, case.rate) for case in found), errors(found, predictor), strict=True))
    tasks = [task for task in dict.fromkeys(case.task for case in found) if task not in SGD]
    pairs = [(task, *both) for task in tasks for both in pairwise(RATES)]
    return [made[t, after] - made[t, before] for t, before, after in pairs if {(t, before), (t, after)} <= set(made)]


def power_of_rate(found: Sequence[Case]) -> tuple[float, Callable[[Case], float]]:
    """(the power of the rate by which 3 B_simple follows the truth best, which no run could know, 3 B_simple by it)."""
    rates = [math.log(case.rate) for case in found]
    power = -statistics.linear_regression(rates, errors(found, PREDICTORS["3 B_simple (1.5 for SGD)"])).slope
    return power, lambda case: case.simple * case.rate**power


def within(made: Sequence[float]) -> int:
    """How many are right within `FACTOR`."""
    return sum(abs(e) <= math.log(FACTOR) for e in made)


def sharpness_table(rows: Mapping[Key, Row] | None = None) -> str:
    """The sharpness by task and rate, and the critical batches by it, by B_simple and by runs."""
    rows = rows or Part("sharpness", FOLDER).rows
    lines, found = [], cases()
    for case in found:
        readings = [
            reading
            for (task, rule, _), row in rows.items()
            for reading in row["readings"]
            if (task, rule) == (case.task, name_of(case.rate))
        ]
        means = [statistics.fmean(reading[kind] for reading in readings) for kind in ("sharpness", "limit")]
        shown = [f"{case.truth:,.0f}", f"{case.simple:,.0f}", f"{_cut(by('sharpness')(case)):,.0f}"]
        ratio = math.exp(errors([case], PREDICTORS["φ_sharp"])[0])
        cells = [f"{means[0]:.3g}", f"{means[1]:.3g}", *shown, f"{ratio:.2f}"]
        lines.append([f"{UNTUNED[case.task].title}, x {case.rate:g}", *cells])
    header = ["task, times its best learning rate", "lr × λ", "limit", "φ of runs", "3 B_simple", "φ_sharp"]
    return markdown([*header, "φ_sharp / φ of runs"], lines) + _where()


def predictors_table() -> str:
    """How far each predictor is off at each rate, and how it follows the truth."""
    found = cases()
    power, of_rate = power_of_rate(found)
    lines = []
    for name, predictor in {**PREDICTORS, f"3 B_simple × rate^{power:.2f}, fitted here": of_rate}.items():
        made, moved = errors(found, predictor), changes(found, predictor)
        by_rate = [[e for e, case in zip(made, found, strict=True) if case.rate == rate] for rate in RATES]
        lines.append([
            name, *(f"{off_by(each):.1f}" for each in by_rate), f"{within(made)} of {len(made)}",
            f"{sum(e > math.log(FACTOR) for e in made)}", f"{correlation(found, predictor):+.2f}",
            f"{off_by(with_own_constant(found, predictor)):.1f}", f"{within(moved)} of {len(moved)}",
        ])  # fmt: skip
    header = ["predicted by", *(f"off by, x {rate:g}" for rate in RATES), f"within a factor of {FACTOR}"]
    header += [f"too high by over {FACTOR}", "correlation", "off by, with its own constant", "follows the rate"]
    return markdown(header, lines) + _where()


def _where() -> str:
    header = Part("sharpness", FOLDER).header
    return where(header, "python -m benchmarks.quality.untuned --data DIR --only sharpness") if header else ""


TABLES = {"untuned_sharpness": sharpness_table, "untuned_sharpness_predictors": predictors_table}
