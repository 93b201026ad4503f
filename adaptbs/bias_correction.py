"""Adam's bias correction, right also where the betas have changed on the way.

An average m <- β m + (1 - β) g that starts at 0 has, after t steps, the mass 1 - β^t, and Adam divides by it. It takes
*today's* β for all the steps before. Once β has become β^k that is not what was accumulated, and the step jumps (by 1.6
where β2 = .999 becomes .999^8 at step 500). A step at k multiplies what is missing by β^k, so the true mass is 1 - β^S,
with S the sum of k over the steps made.
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
        exponent: S, the sum over those steps of the power that the betas were raised to.
        k: the power at the latest step prepared, which may or may not have been made yet.
        prepared: whether a step has been prepared that is not counted in `steps`.
    """

    steps: int = 0
    exponent: float = 0.0
    k: float = 1.0
    prepared: bool = False

    def seen(self, steps: int | None) -> None:
        """Take in how many steps the optimizer has made; None where it is not known: then as many as were prepared.

        Steps that did not happen (skipped by a GradScaler, or an optimizer begun anew) are given back in proportion.
        """
        if steps is None:
            steps = self.steps + self.prepared
        if steps >= self.steps:
            self.exponent += (steps - self.steps) * self.k
        else:
            self.exponent *= steps / self.steps
        self.steps, self.prepared = steps, False

    def prepare(self, k: float) -> tuple[int, float]:
        """(t, S), the step included that is now to be made at k."""
        self.k, self.prepared = k, True
        return self.steps + 1, self.exponent + k


def correction(
    beta1: float | None, beta2: float | None, *, k: float, steps: int, exponent: float
) -> tuple[float, float]:
    """(factor of the learning rate, factor of eps) that turn Adam's correction with today's betas into the true one.

    Adam makes the step lr (m/M1)/(sqrt(v/M2) + eps) with M_i = 1 - (β_i^k)^t, where the masses are M_i/c_i = 1 - β_i^S.
    The step with these is (lr c1/sqrt(c2)) (m/M1)/(sqrt(v/M2) + eps/sqrt(c2)).

    Args:
        beta1, beta2: at the base batch, today; None for an average that is not corrected, or whose beta is not moved.
        k: the power that they are raised to in this step.
        steps: t, this one included.
        exponent: S, this step included.
    """
    c1, c2 = (
        1.0 if beta is None else (1 - (beta**k) ** steps) / (1 - beta**exponent) for beta in (beta1, beta2)
    )  # fmt: skip
    lr, eps = c1 / math.sqrt(c2), 1 / math.sqrt(c2)
    return _unless_negligible(lr), _unless_negligible(eps)


def _unless_negligible(factor: float) -> float:
    return factor if abs(factor - 1) >= NEGLIGIBLE else 1.0


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
