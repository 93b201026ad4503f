"""Which steps to measure, so that measuring costs a given share of the run and no more."""

from __future__ import annotations

import random
from typing import Any

from ..types import COUPLED, Decision, NoiseScale

FIRST = 24  # measurements made at once, every 2nd step: what is known early decides about nearly all of the run
TRY = 3  # so many of them before their cost is looked at
DENSEST = 0.5  # share of steps measured at most
EAGER, IDLE = 2.0, 0.25  # while the batch may still move, and once it has settled, relative to the rate that just fits
KEEP_UP = 160  # measurements spread over a run with which the estimate still follows: 8 in a twentieth, which it spans
STANDING = 0.75  # share of the overhead that goes at most for what is done at every step
KEPT = 3  # decisions in a row that leave the batch as it is
OUT_OF_REACH = 4  # a limit is where the batch stays while the noise scale is this many times above it


def measuring_rate(
    overhead: float, *, elapsed: float, spent: float, seconds_left: float, step: float, cost: float, speed: float = 1.0
) -> float:
    """The share of the coming steps to measure so that the run stays within its budget.

    Half of what seems to be left is planned for: a batch that doubles halves it, and what is spent is spent. Where the
    batch stays the other half is planned for later, at the same rate.

    Args:
        overhead: share of the run's time that may be spent; of the time at its first batch size, see `speed`.
        elapsed: seconds of training so far, as they would have been at the first batch size.
        spent: seconds spent so far, on measuring and on deciding.
        seconds_left: of training still to come, at the batch size of now.
        step: seconds of a step.
        cost: extra seconds of a measurement.
        speed: how many times quicker the run is than at its first batch size.
    """
    ahead = seconds_left / 2
    budget = overhead * (elapsed + speed * ahead) - spent
    if ahead <= 0 or budget <= 0:
        return 0.0
    return min(DENSEST, budget / ahead * step / cost)


def has_settled(decision: Decision, estimate: NoiseScale | None, kept: int) -> bool:
    """Whether the next decisions are unlikely to change anything, so that few measurements will do.

    Args:
        decision: the latest.
        estimate: that it was made from.
        kept: how many decisions in a row, this one the last, have left the batch as it is.
    """
    if decision.reason == COUPLED:
        return True
    if estimate is None or not kept:
        return False
    if decision.reason in ("max_batch_size", "memory"):
        return estimate.low >= OUT_OF_REACH * decision.batch_size
    return kept >= KEPT and estimate.doubt is None


class DutyCycle:
    """A coin for each step: random, so that it never falls in with a rhythm of the data.

    The first step is always measured: what cannot be measured should fail there, not later. It has a random generator
    of its own: training's must not notice.
    """

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._rng = random.Random(0)
        self._rate = overhead / EAGER  # until measuring has been timed: as if it cost one step
        self._even = overhead  # the rate at which all of the run would cost the overhead
        self._left = float("inf")  # measurements that the budget is still good for, known from when they are timed
        self._kept, self._settled = 0, False  # decisions in a row that left the batch as it is
        self._steps = self._measured = 0

    def measure_next(self, steps_in_run: float) -> bool:
        """Whether to measure the next step of a run that will take about `steps_in_run` steps."""
        if self._overhead == 0:
            return False
        first, self._steps = self._steps == 0, self._steps + 1
        affordable = min(FIRST, self._overhead * steps_in_run / 2)  # a measurement may cost two steps
        if first or (self._measured < affordable and self._left >= self._measured):  # (half of the budget, at most)
            chosen = self._steps % 2 == 1
        else:
            # Twice what would use up the budget evenly while the batch may still move, because that is when measurements
            # decide something; once it has settled, as seldom as lets the estimate keep up.
            if not self._settled:
                rate = min(DENSEST, EAGER * self._rate)
            else:
                rate = min(self._rate, max(IDLE * self._even, KEEP_UP / max(steps_in_run, 1)))
            chosen = self._rng.random() < rate and self._left >= 1
        self._measured += chosen
        self._left -= chosen
        return chosen

    def decided(self, decision: Decision, batch_size: int, estimate: NoiseScale | None) -> None:
        """Take note of a decision that was made from this estimate at this batch size."""
        self._kept = self._kept + 1 if decision.batch_size == batch_size else 0
        self._settled = has_settled(decision, estimate, self._kept)

    def calibrate(
        self,
        *,
        elapsed: float,
        spent: float,
        seconds_left: float,
        step: float,
        cost: float,
        per_step: float = 0.0,
        speed: float = 1.0,
    ) -> None:
        """Set the rate by `measuring_rate`, and how many measurements it may come to before the next call.

        What is done at every step, measured or not, has its share of the overhead, but not all of it: not measuring
        would save nothing there.
        """
        if step > 0 and cost > 0:
            overhead = self._overhead - min(per_step / step, STANDING * self._overhead)
            self._even = overhead * speed * step / cost
            self._rate = measuring_rate(
                overhead, elapsed=elapsed, spent=spent, seconds_left=seconds_left, step=step, cost=cost, speed=speed
            )
            self._left = max(0.0, overhead * (elapsed + speed * seconds_left) - spent) / cost

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._rng.getstate()
        return {
            "rng": [version, list(words), gauss], "rate": self._rate, "even": self._even, "left": self._left,
            "kept": self._kept, "settled": self._settled, "steps": self._steps, "measured": self._measured,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))
        self._rate, self._even, self._left = state["rate"], state["even"], state["left"]
        self._kept, self._settled = state["kept"], state["settled"]
        self._steps, self._measured = state["steps"], state["measured"]
