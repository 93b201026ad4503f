"""The rule of adaptbs with one thing changed, and how often is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from adaptbs.decision import counted_over_simple, sample_efficiency
from adaptbs.hyperparameters.learning_rate import linear, sqrt
from adaptbs.hyperparameters.lookup import _TRAITS
from adaptbs.run.efficiencies import SampleEfficiencies
from adaptbs.run.settings import OVERHEADS
from benchmarks.quality.adaptive import Adaptive
from benchmarks.quality.untuned.compared import BEFORE, COMPUTE, DEFAULT, FULL, HALF_AGAIN, MEASURED, STARTS

POLICY, DUTY = "adaptbs.decision.policy.", "adaptbs.timing.duty_cycle."
LATEST, LONGEST = "adaptbs.noise_scale.window.FULL", "adaptbs.run.rules.LONGEST"
BY_HALVES = ("resnet",)  # tasks that are measured by halves, at a larger overhead


def _whole_power(lr_scaling: Any, *, adaptive: bool, base_batch_size: int, critical: float) -> Any:
    return sqrt if adaptive else linear


def _within_rate(cut_size: int, reference: int, noise_scale: Any, counted: float) -> float:
    """Efficiency such that a step of Adam and its kin counts for at most its learning rate's factor over .7."""
    k = cut_size / reference
    gain = k * sample_efficiency(cut_size, reference, noise_scale, counted)
    of_adam = counted > counted_over_simple(adaptive=False)
    return min(gain, math.sqrt(gain) / 0.7) / k if of_adam and gain > 2 else gain / k


def root_of_k(k: float) -> tuple[float, float]:
    """The powers of beta1 and beta2 before today's: sqrt(k) and k."""
    return math.sqrt(k), k


def _critical(adaptive: float, sgd: float) -> dict[str, object]:
    return {POLICY + "CRITICAL_OF_ADAPTIVE": adaptive, POLICY + "CRITICAL_OF_SGD": sgd}


def _floors(first: float, last: float) -> dict[str, object]:
    return {POLICY + "FIRST_FLOOR": first, POLICY + "LAST_FLOOR": last}


def _beside(at_once: int, over_run: int) -> dict[str, object]:
    """So many measurements whatever the overhead is."""
    return {DUTY + "AT_ONCE": at_once, DUTY + "OVER_RUN": over_run}


#: beta1^sqrt(k), as it was; and the same of what follows as beta1 does.
BETA1 = {"adaptbs.hyperparameters.scaler.powers": root_of_k}
#: The rule of the first last look, but that Adam's batch too stays small in the first tenth of a run.
OLD_RULE = Adaptive(BEFORE, patches={
    POLICY + "COUNTED": 1, POLICY + "SHRINK_UNTIL": 0.2, LONGEST: math.inf, LATEST: 16, **_beside(0, 0), **BETA1
})  # fmt: skip
_SGDS = _TRAITS | {"SGD": replace(_TRAITS["SGD"], first=True)}
MOMENTUM = {"adaptbs.hyperparameters.lookup._TRAITS": _SGDS, **BETA1}


class ByNoise(SampleEfficiencies):
    """Progress counted whatever the learning rate is."""

    __getitem__ = dict.__getitem__


RISE = "adaptbs.hyperparameters.gradual_rise.RISE"
A_TWENTIETH: dict[str, object] = {RISE: 1.05}
THREE_TIMES: dict[str, object] = {LONGEST: 3, "adaptbs.hyperparameters.gradual_rise.LONGEST": 3}
BY_NOISE: dict[str, object] = {"adaptbs.run.controller.SampleEfficiencies": ByNoise}

OF_ROOT = Adaptive("Adam: beta1^√k", patches=BETA1)
OF_ROOT_BY_HALF = Adaptive("Adam: beta1^√k, counted by half", patches={POLICY + "COUNTED": 1 / 2, **BETA1})
WITHIN_RATE = Adaptive("Adam: counted within its rate", patches={"adaptbs.run.rules.sample_efficiency": _within_rate})

#: One switch each, against the default.
ABLATIONS = (
    Adaptive("critical batch x 2/3", patches=_critical(2, 1)),
    Adaptive("critical batch x 4/3", patches=_critical(4, 2)),
    Adaptive("counted as chosen", patches={POLICY + "COUNTED": 1}),
    WITHIN_RATE,
    Adaptive(HALF_AGAIN, options={"max_extra": 0.5}),
    Adaptive("counted by half", patches={POLICY + "COUNTED": 1 / 2}),
    Adaptive("efficiency .8 to .4", patches=_floors(0.8, 0.4)),
    Adaptive("efficiency .6 to .3", patches=_floors(0.6, 0.3)),
    Adaptive("no early limit", patches={POLICY + "EARLY": 0, POLICY + "WARM_UP": 0}),
    Adaptive("within the overhead alone", patches=_beside(0, 0)),
    Adaptive("one in 16 steps at most", patches={DUTY + "LEAST_APART": 16}),
    Adaptive("the latest 16 always kept", patches={LATEST: 16}),
    Adaptive("lower limit", patches={"adaptbs.types.SURE": 1}),
    Adaptive("x4 growth", patches={POLICY + "PACE": 4}),
    Adaptive("lr x √k, SGD x k", patches={"adaptbs.run.rules.lr_rule": _whole_power}),
    OF_ROOT,
)

#: What SGD's learning rate does as the batch grows, on a run that diverged now and then.
OF_SGD = (
    Adaptive("all three as before", patches={**THREE_TIMES, **A_TWENTIETH, **BY_NOISE}),
    Adaptive("three times the peak", patches=THREE_TIMES),
    Adaptive("raised by a twentieth a step", patches=A_TWENTIETH),
    Adaptive("counted by the noise alone", patches=BY_NOISE),
    Adaptive("no limit to its rate", patches={LONGEST: math.inf}),
    Adaptive("momentum^√k", patches=MOMENTUM),
)


def _constant(name: str, value: float, rule: Adaptive) -> Adaptive:
    """The rule with this constant, named after it."""
    clock = f" {COMPUTE}" if rule.name == FULL else ""
    return replace(rule, name=f"{name.rpartition('.')[2]} {value:g}{clock}", patches={name: value})


_FULL, _FROM_256 = Adaptive(FULL, clock=COMPUTE), next(Adaptive(*each) for each in STARTS.items() if each[1] == 256)

#: Constants that play a part in few runs: the rule as it is, the rule with another value, and tasks that it is one in.
CONSTANTS = [
    (usual, _constant(name, value, usual), tasks)
    for name, values, usual, tasks in (
        (DUTY + "AT_LIMIT", (0.25, 1), _FULL, ("bag_of_words", "wrong_labels", "mlp_rmsprop")),
        (POLICY + "EARLY_FACTOR", (1, 4), Adaptive(DEFAULT), ("mixer_lion", "wrong_labels", "longer")),
        (POLICY + "BELOW_FOR_SGD", (0, 0.1), Adaptive(DEFAULT), ("resnet",)),
        (POLICY + "CONSTANT_RATE", (2, 8), Adaptive(DEFAULT), ("housing_constant",)),
        (POLICY + "SHRINK_UNTIL", (0, 0.2, 1), _FROM_256, ("denoising", "census_nadam", "short")),
    )
    for value in values
]


def concerns(rule: Adaptive, sgd: bool) -> bool:
    """True if a switch makes a difference to a task of SGD, or to one of another optimizer."""
    return not (sgd and rule.name.startswith("Adam"))


def measured(task: str) -> list[Adaptive]:
    """Half and twice of `overhead`, and half and twice of all measurements."""
    usual = OVERHEADS["halves" if task in BY_HALVES else "in step"]
    # Below IN_FULL fewer are made for the overhead already: without a lower one they would be halved twice.
    fewer, more = _beside(4, 10) | {DUTY + "IN_FULL": 0.01}, _beside(16, 40) | {DUTY + "LEAST_APART": 4}
    return [
        Adaptive(name, options={"overhead": by * usual}, patches=patches)
        for (name, by), patches in zip(MEASURED.items(), ({}, {}, fewer, more), strict=True)
    ]
