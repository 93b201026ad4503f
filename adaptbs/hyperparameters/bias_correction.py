"""Adam's bias correction for betas that change during the run.

An average m <- β m + (1 - β) g that starts at 0 has, after t steps, the mass 1 - β^t, and Adam divides by this mass.
Adam computes it as if *today's* β had been used in all steps so far. Once β has become β^p, that is no longer the mass
accumulated, and the step jumps (by a factor of 1.6 if β2 = .999 becomes .999^8 at step 500). A step with β^p multiplies
the missing mass by β^p, so the true mass is 1 - β^S, with S the sum of p over the steps made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_READ = 64  # numbers of a device that are remembered
NEGLIGIBLE = 1e-6  # a correction that is closer to 1 than this is skipped
ROUNDING = 1e-9  # relative; sums of many powers come this near to their product


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

    def seen_one_more(self) -> None:
        """Update to one step more, and prepare another of the same powers."""
        self.steps += 1
        self.first += self.power_first
        self.second += self.power_second

    def seen(self, steps: int | None, coming: tuple[float, float] | None = None) -> None:
        """Update to the number of steps that the optimizer has made, and prepare the coming one.

        If the optimizer has made fewer steps than counted, because a GradScaler skipped some or because the optimizer
        was started anew, S is reduced in proportion.

        Args:
            steps: t, steps made. None if unknown; then every prepared step counts as made.
            coming: the powers of the step that is about to be made; None if none is.
        """
        if steps is None:
            steps = self.steps + self.prepared
        if steps >= self.steps:
            self.first += (steps - self.steps) * self.power_first
            self.second += (steps - self.steps) * self.power_second
        else:
            self.first, self.second = self.first * steps / self.steps, self.second * steps / self.steps
        self.steps, self.prepared = steps, coming is not None
        if coming is not None:
            self.power_first, self.power_second = coming


def corrections(
    betas: tuple[float, float],
    powers: tuple[float, float],
    steps: int,
    exponents: tuple[float, float],
    debiased: tuple[bool, bool] = (True, True),
) -> tuple[float, float]:
    """Factors of the learning rate and of eps that turn Adam's correction with today's betas into the true one.

    Adam takes an average to have the mass 1 - (β^p)^t, where it has 1 - β^S. Let c be the first over the second. Adam
    makes the step lr (m/M1)/(sqrt(v/M2) + eps), where the true masses are M/c. The step with these is
    (lr c1/sqrt(c2)) (m/M1)/(sqrt(v/M2) + eps/sqrt(c2)).

    Args:
        betas: β1 and β2 at the base batch, today.
        powers: p, the powers that they are raised to in this step.
        steps: t, steps made, this one included.
        exponents: S, the sums of the powers over the steps made, this one included.
        debiased: whether the optimizer corrects each average at all; else its c is 1.
    """
    (beta1, beta2), (power1, power2), (exponent1, exponent2) = betas, powers, exponents
    c1 = (1 - (beta1**power1) ** steps) / (1 - beta1**exponent1) if debiased[0] else 1.0
    c2 = (1 - (beta2**power2) ** steps) / (1 - beta2**exponent2) if debiased[1] else 1.0
    root = math.sqrt(c2)
    lr, eps = c1 / root, 1 / root
    return (lr if abs(lr - 1) >= NEGLIGIBLE else 1.0), (eps if abs(eps - 1) >= NEGLIGIBLE else 1.0)


def settled_betas(power: float, steps: int, exponent: float) -> float:
    """The betas below which no correction of an average is left, now and in all steps to come at the same power.

    An average has its whole mass once β^S is negligible. If it has only seen steps at this power, its mass is what Adam
    takes it to have, whatever β is.

    Args:
        power: p, to which the beta is raised.
        steps: t, steps made.
        exponent: S, the sum of the powers over these steps.
    """
    made = power * steps
    if abs(made - exponent) <= ROUNDING * exponent:
        return 1.0
    return (NEGLIGIBLE / 2) ** (1 / min(made, exponent)) if min(made, exponent) > 0 else 0.0


class StepCount:
    """Reads how many steps an optimizer has made on a group.

    The count lies in the state of each parameter that has been stepped, so it is that of the first that has one; which
    that is, is remembered, for a group may have thousands that are frozen. Some optimizers keep it in the group.

    To look a count up and to read it takes as long as the rest of a small group's change. So a count in the host's
    memory that has been seen to grow by one where torch counts one change of its tensor is taken to have done so again
    where torch counts one more.

    Args:
        parameters: the group's parameters.
    """

    __slots__ = ("_by_one", "_counted", "_parameters", "_stateful", "_steps", "_tensor", "_version")

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = parameters
        self._counted: Tensor | None = None
        self._tensor: Tensor | None = None  # the count, where the host has read it
        self._version, self._steps, self._by_one = 0, 0, False  # torch's number of its changes, and what was read
        self._stateful = -1  # parameters that had a state when none of this group's had a count

    def read(self, state: Mapping[Tensor, Any], group: Mapping[str, Any], *, wait: bool) -> int | None:
        """Steps made; 0 if there is no count, None if it lies on a device that is not to be waited for.

        Args:
            state: the optimizer's state.
            group: the optimizer's group, in which it may keep its count.
            wait: True if the host may wait for a count that lies on a device.
        """
        if self._by_one and self._tensor is not None and self._tensor._version == self._version + 1:
            self._version, self._steps = self._version + 1, self._steps + 1
            return self._steps
        steps = self.find(state, group)
        return steps if not isinstance(steps, Tensor) else int(steps) if wait else None

    def find(self, state: Mapping[Tensor, Any], group: Mapping[str, Any]) -> int | Tensor:
        """Steps made; 0 if there is no count, the count itself if it lies on a device."""
        step = None
        if self._counted is not None:
            step = state.get(self._counted, _EMPTY).get("step")
        if step is None:
            step = group.get("step", group["k"] if "weight_lr_power" in group else None)  # k: Schedule-Free's
        if step is None and len(state) != self._stateful:
            self._counted, step = _first_count(self._parameters, state)
            self._stateful = -1 if step is not None else len(state)
        if step is None:
            return 0
        if not isinstance(step, Tensor):
            return int(step)
        if not step.is_cpu:
            return step
        steps, version = int(step), step._version
        self._by_one = step is self._tensor and (version - self._version, steps - self._steps) == (1, 1)
        self._tensor, self._version, self._steps = step, version, steps
        return steps


def read_all(
    counts: Sequence[StepCount], state: Mapping[Tensor, Any], groups: Sequence[Mapping[str, Any]], waits: Sequence[bool]
) -> list[int | None]:
    """Steps made on each group, as `StepCount.read`. The host waits once for all that lie on a device."""
    found = [count.find(state, group) for count, group in zip(counts, groups, strict=True)]
    away = [steps for steps, wait in zip(found, waits, strict=True) if wait and isinstance(steps, Tensor)]
    read = iter(torch.stack([s.reshape(()).float().to(away[0].device) for s in away]).tolist() if away else ())
    return [
        steps if not isinstance(steps, Tensor) else int(next(read)) if wait else None
        for steps, wait in zip(found, waits, strict=True)
    ]


class Numbers:
    """Hyperparameters as numbers. One that lies on a device is waited for where it has changed, not at each step."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Tensor, int, float]] = {}  # by the tensor's id, with its count of changes

    def __call__(self, *values: Any) -> tuple[float, ...]:
        return tuple(map(self._number, values))

    def _number(self, value: Any) -> float:
        if not isinstance(value, Tensor) or value.is_cpu:
            return float(value)
        known = self._read.get(id(value))
        if known is None or known[0] is not value or known[1] != value._version:
            if len(self._read) >= MOST_READ:  # a schedule that makes a new tensor at every step
                self._read.clear()
            known = self._read[id(value)] = value, value._version, float(value)
        return known[2]


_EMPTY: Mapping[str, Any] = {}


def _first_count(parameters: Iterable[Tensor], state: Mapping[Tensor, Any]) -> tuple[Tensor | None, Any]:
    for parameter in parameters:
        step = state.get(parameter, _EMPTY).get("step")
        if step is not None:
            return parameter, step
    return None, None


def steps_made(parameters: Iterable[Tensor], state: Mapping[Tensor, Any], *, wait: bool) -> int | None:
    """Steps that an optimizer has made on a group, by the first of its parameters that has a count; 0 if none has.

    Args:
        parameters: the group's parameters.
        state: the optimizer's state.
        wait: True if the host may wait for a count that lies on a device. If False, such a count gives None.
    """
    return StepCount(parameters).read(state, _EMPTY, wait=wait)
