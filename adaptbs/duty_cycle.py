"""Which steps to measure, so that measuring costs a given share of the run and no more."""

from __future__ import annotations

import random
from typing import Any

FIRST = 8  # measurements made at once, every 2nd step, for the first decision
DENSEST = 0.5  # share of steps measured at most


def measuring_rate(*, budget: float, spent: float, seconds_left: float, step: float, cost: float) -> float:
    """The share of the remaining steps to measure so that the whole run stays within its budget.

    Args:
        budget: seconds that measuring may take over the whole run.
        spent: seconds it has taken so far.
        seconds_left: of training still to come.
        step: seconds of a step.
        cost: extra seconds of a measurement.
    """
    steps_left = seconds_left / step
    if steps_left <= 0 or budget <= spent:
        return 0.0
    return min(DENSEST, (budget - spent) / (cost * steps_left))


class DutyCycle:
    """A random coin for each step: random, so that it never falls in with a rhythm of the data.

    It has a random generator of its own: training's must not notice.
    """

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._rng = random.Random(0)
        self._rate = overhead  # until measuring has been timed: as if it cost one step
        self._steps = self._measured = 0

    def measure_next(self, steps_in_run: float) -> bool:
        """Whether to measure the next step of a run that will take about `steps_in_run` steps."""
        if self._overhead == 0:
            return False
        self._steps += 1
        if self._measured < FIRST and self._overhead * steps_in_run >= FIRST:  # the run can afford a quick start
            chosen = self._steps % 2 == 0
        else:
            chosen = self._rng.random() < self._rate
        self._measured += chosen
        return chosen

    def calibrate(self, *, elapsed: float, spent: float, seconds_left: float, step: float, cost: float) -> None:
        """Set the rate from seconds of training so far, of measuring so far, of training to come, of a step each."""
        if step > 0 and cost > 0:
            budget = self._overhead * (elapsed + seconds_left)
            self._rate = measuring_rate(budget=budget, spent=spent, seconds_left=seconds_left, step=step, cost=cost)

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._rng.getstate()
        return {
            "rng": [version, list(words), gauss], "rate": self._rate, "steps": self._steps, "measured": self._measured
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))
        self._rate, self._steps, self._measured = state["rate"], state["steps"], state["measured"]
