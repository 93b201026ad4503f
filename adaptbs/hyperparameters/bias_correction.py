"""Adam's bias correction, right also where the betas have changed on the way.

An average m <- β m + (1 - β) g that starts at 0 has, after t steps, the mass 1 - β^t, and Adam divides by it. It takes
*today's* β for all the steps before. Once β has become β^p that is not what was accumulated, and the step jumps (by 1.6
where β2 = .999 becomes .999^8 at step 500). A step with β^p multiplies what is missing by β^p, so the true mass is
1 - β^S, with S the sum of p over the steps made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NEGLIGIBLE = 1e-6  # a correction closer to 1 is left out


@dataclass(slots=True)
class Accumulated:
    """What the averages of one parameter group have accumulated.

    Attributes:
        steps: t, steps made.
        first, second: S, the sum over those steps of the power that beta1, beta2 was raised to.
        power_first, power_second: at the latest step prepared, which may or may not have been made yet.
        prepared: whether a step has been prepared that is not counted in `steps`.
    """

    steps: int = 0
    first: float = 0.0
    second: float = 0.0
    power_first: float = 1.0
    power_second: float = 1.0
    prepared: bool = False

    def seen(self, steps: int | None) -> None:
        """Take in how many steps the optimizer has made; None where it is not known: then as many as were prepared.

        Steps that did not happen (skipped by a GradScaler, or an optimizer begun anew) are given back in proportion.
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
        """t and S of both betas, the step included that is now to be made with the betas raised to these powers."""
        self.power_first, self.power_second, self.prepared = first, second, True
        return self.steps + 1, self.first + first, self.second + second


def correction(first: float, second: float) -> tuple[float, float]:
    """(factor of the learning rate, factor of eps) that turn Adam's correction with today's betas into the true one.

    Adam makes the step lr (m/M1)/(sqrt(v/M2) + eps) with M = 1 - (β^p)^t, where the true masses are M/c = 1 - β^S. The
    step with these is (lr c1/sqrt(c2)) (m/M1)/(sqrt(v/M2) + eps/sqrt(c2)).

    Args:
        first, second: c1 and c2, see `mass_ratio`; 1 for an average that is not corrected.
    """
    lr, eps = first / math.sqrt(second), 1 / math.sqrt(second)
    return (lr if abs(lr - 1) >= NEGLIGIBLE else 1.0), (eps if abs(eps - 1) >= NEGLIGIBLE else 1.0)


def mass_ratio(beta: float, power: float, steps: int, exponent: float) -> float:
    """c: the mass that an optimizer takes its average to have, over the true one.

    Args:
        beta: at the base batch, today.
        power: that it is raised to in this step.
        steps: t, this one included.
        exponent: S, this step included.
    """
    return float((1 - (beta**power) ** steps) / (1 - beta**exponent))


def steps_made(parameters: Iterable[Tensor], state: Mapping[Tensor, Any], *, wait: bool) -> int | None:
    """Steps that an optimizer has made on a group, by the first of its parameters that has made any.

    Args:
        parameters: of the group.
        state: the optimizer's.
        wait: whether a count that lies on a device may be waited for; None is returned for it otherwise.
    """
    for parameter in parameters:
        step = state.get(parameter, {}).get("step")
        if step is not None:
            if wait or not isinstance(step, Tensor) or step.is_cpu:
                return int(step)
            return None
    return 0
