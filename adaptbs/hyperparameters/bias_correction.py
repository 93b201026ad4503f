"""Adam's bias correction for betas that change during the run.

An average m <- β m + (1 - β) g that starts at 0 has, after t steps, the mass 1 - β^t, and Adam divides by this mass.
Adam computes it as if *today's* β had been used in all steps so far. Once β has become β^p, that is no longer the mass
accumulated, and the step jumps (by a factor of 1.6 if β2 = .999 becomes .999^8 at step 500). A step with β^p multiplies
the missing mass by β^p, so the true mass is 1 - β^S, with S the sum of p over the steps made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NEGLIGIBLE = 1e-6  # a correction that is closer to 1 than this is skipped


@dataclass(slots=True)
class Accumulated:
    """The steps and powers that the averages of one parameter group have accumulated.

    Attributes:
        steps: t, steps made.
        first, second: S, the sum over those steps of the power to which beta1, beta2 was raised.
        power_first, power_second: the powers of the latest step prepared, which may not have been made yet.
        prepared: True if a step has been prepared that is not counted in `steps`.
    """

    steps: int = 0
    first: float = 0.0
    second: float = 0.0
    power_first: float = 1.0
    power_second: float = 1.0
    prepared: bool = False

    def seen(self, steps: int | None) -> None:
        """Update to the number of steps that the optimizer has made.

        If the optimizer has made fewer steps than counted, because a GradScaler skipped some or because the optimizer
        was started anew, S is reduced in proportion.

        Args:
            steps: t, steps made. None if unknown; then every prepared step counts as made.
        """
        if steps is None:
            steps = self.steps + self.prepared
        if steps >= self.steps:
            self.first += (steps - self.steps) * self.power_first
            self.second += (steps - self.steps) * self.power_second
        else:
            self.first, self.second = self.first * steps / self.steps, self.second * steps / self.steps
        self.steps, self.prepared = steps, False

    def prepare(self, first: float, second: float) -> tuple[int, float, float]:
        """t and S of both betas, including the coming step, whose betas are raised to these powers."""
        self.power_first, self.power_second, self.prepared = first, second, True
        return self.steps + 1, self.first + first, self.second + second


def correction(first: float, second: float) -> tuple[float, float]:
    """(factor of the learning rate, factor of eps) that turn Adam's correction with today's betas into the true one.

    Adam's step is lr (m/M1)/(sqrt(v/M2) + eps) with M = 1 - (β^p)^t, but the true masses are M/c = 1 - β^S. The step
    with the true masses is (lr c1/sqrt(c2)) (m/M1)/(sqrt(v/M2) + eps/sqrt(c2)).

    Args:
        first, second: c1 and c2, see `mass_ratio`; 1 for an average that needs no correction.
    """
    lr, eps = first / math.sqrt(second), 1 / math.sqrt(second)
    return (lr if abs(lr - 1) >= NEGLIGIBLE else 1.0), (eps if abs(eps - 1) >= NEGLIGIBLE else 1.0)


def mass_ratio(beta: float, power: float, steps: int, exponent: float) -> float:
    """c = (1 - (β^p)^t)/(1 - β^S), the mass that the optimizer assumes its average to have over the true mass.

    Args:
        beta: β, today's value at the base batch.
        power: p, the power to which β is raised in this step.
        steps: t, including this step.
        exponent: S, including this step.
    """
    return float((1 - (beta**power) ** steps) / (1 - beta**exponent))


def steps_made(parameters: Iterable[Tensor], state: Mapping[Tensor, Any], *, wait: bool) -> int | None:
    """Steps that an optimizer has made on a group, by the first of its parameters that has a count; 0 if none has.

    Args:
        parameters: the group's parameters.
        state: the optimizer's state.
        wait: True if the host may wait for a count that lies on a device. If False, such a count gives None.
    """
    for parameter in parameters:
        step = state.get(parameter, {}).get("step")
        if step is not None:
            if wait or not isinstance(step, Tensor) or step.is_cpu:
                return int(step)
            return None
    return 0
