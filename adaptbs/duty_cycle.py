"""Which steps to measure, so that measuring costs a given share of the run and no more."""

from __future__ import annotations

import random
from typing import Any

FIRST = 8  # measurements made at once, every 2nd step, for the first decision
DENSEST = 0.5  # share of steps measured at most


def measuring_rate(
    overhead: float, *, elapsed: float, spent: float, seconds_left: float, step: float, cost: float
) -> float:
    """The share of the coming steps to measure so that the run stays within its budget.

    Half of what seems to be left is planned for: a batch that doubles halves it, and what is spent is spent. Where the
    batch stays the other half is planned for later, at the same rate.

    Args:
        overhead: share of the run's time that measuring may cost.
        elapsed: seconds of training so far.
        spent: seconds of measuring so far.
        seconds_left: of training still to come, at the batch size of now.
        step: seconds of a step.
        cost: extra seconds of a measurement.
    """
    ahead = seconds_left / 2
    budget = overhead * (elapsed + ahead) - spent
    if ahead <= 0 or budget <= 0:
        return 0.0
    return min(DENSEST, budget / ahead * step / cost)


class DutyCycle:
    """A coin for each step: random, so that it never falls in with a rhythm of the data.

    The first step is always measured: what cannot be measured should fail there, not later. It has a random generator
    of its own: training's must not notice.
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
        first, self._steps = self._steps == 0, self._steps + 1
        affordable = self._overhead * steps_in_run >= 2 * FIRST  # a measurement may cost two steps
        if first or (self._measured < FIRST and affordable):
            chosen = self._steps % 2 == 1
        else:
            chosen = self._rng.random() < self._rate
        self._measured += chosen
        return chosen

    def calibrate(self, *, elapsed: float, spent: float, seconds_left: float, step: float, cost: float) -> None:
        """Set the rate by `measuring_rate`."""
        if step > 0 and cost > 0:
            self._rate = measuring_rate(
                self._overhead, elapsed=elapsed, spent=spent, seconds_left=seconds_left, step=step, cost=cost
            )

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._rng.getstate()
        return {
            "rng": [version, list(words), gauss], "rate": self._rate, "steps": self._steps, "measured": self._measured
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))
        self._rate, self._steps, self._measured = state["rate"], state["steps"], state["measured"]
