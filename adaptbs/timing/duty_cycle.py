"""Chooses the steps to measure, so that measuring costs a given share of the run and no more."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from ..types import COUPLED, Decision, NoiseScale

FIRST = 24  # measurements at the start, on every 2nd step: what is known early affects nearly all of the run
AT_FIRST = 4  # the measurements at the start may use up the budget over this
# Measurements that a run makes whatever they cost: so many on every 2nd step at its start, and so many more over the
# rest of it, evenly. With fewer a short run would learn too late, and its batch would go by how often is measured.
AT_ONCE, OVER_RUN = 8, 20
IN_FULL = 0.02  # below this `overhead`, which only a user has chosen, OVER_RUN is less in proportion
LEAST_APART = 8  # but not more than one in so many steps of the run at its first batch size
FAR = 1 << 20  # steps that are chosen among at once, at the most
TRY = 3  # measurements before their cost is first read
DENSEST = 0.5  # largest share of the steps that is measured
EAGER, IDLE = 2.0, 0.25  # rates while the batch may still change and once it has settled, over the rate that just fits
KEEP_UP = 160  # measurements in a run with which the estimate still follows: 8 in the twentieth of a run that it spans
STANDING = 0.75  # largest share of the overhead that the fixed work of every step may use up
KEPT = 3  # consecutive decisions that keep the batch size, after which the batch counts as settled
AT_A_LIMIT = (COUPLED, "step time", "max_batch_size", "memory")  # reasons of a decision
AT_LIMIT = 0.5  # share of OVER_RUN that is measured where a batch has settled at one of them
OUT_OF_REACH = 4  # a batch at its limit counts as settled while the noise scale is this many times larger


def measuring_rate(
    overhead: float,
    *,
    elapsed: float,
    spent: float,
    seconds_left: float,
    step: float,
    cost: float,
    speed: float = 1.0,
    reserved: float = 0.0,
) -> float:
    """The share of the coming steps to measure so that the run stays within its budget, 0..1.

    The plan covers only half of the time that seems to be left. A batch that doubles halves that time, and seconds
    already spent cannot be taken back. If the batch stays, the other half is planned later, at the same rate.

    Args:
        overhead: share of the run's time that may be spent. It refers to the time at the first batch size, see `speed`.
        elapsed: seconds of training so far, as they would have been at the first batch size.
        spent: seconds spent so far on measuring and deciding.
        seconds_left: seconds of training still to come, at the current batch size.
        step: seconds of a step.
        cost: extra seconds of a measurement.
        speed: how many times faster the run is than at its first batch size.
        reserved: seconds of measuring that the whole time left needs at the least, not to be spent before.
    """
    ahead = seconds_left / 2
    budget = overhead * (elapsed + speed * ahead) - spent - reserved / 2
    if ahead <= 0 or budget <= 0:
        return 0.0
    return min(DENSEST, budget / ahead * step / cost)


def has_settled(decision: Decision, estimate: NoiseScale | None, kept: int) -> bool:
    """True if the next decisions are unlikely to change the batch size, so that few measurements are enough.

    Args:
        decision: the latest decision.
        estimate: the noise scale that it was made from.
        kept: number of consecutive decisions, up to and including this one, that kept the batch size.
    """
    if decision.reason == COUPLED:
        return True
    if estimate is None or not kept:
        return False
    if decision.reason in ("max_batch_size", "memory"):
        return estimate.low >= OUT_OF_REACH * decision.batch_size
    return kept >= KEPT and replace(estimate, caveat=None).doubt is None  # a caveat does not go by measuring more


class DutyCycle:
    """Chooses by chance whether to measure each step, so that the choice never locks on to a period in the data.

    A step is asked about for the first of these reasons that applies:

    1. Some measurements are made whatever they cost: `AT_ONCE` at the start, `OVER_RUN` over the run.
    2. A run begins with `FIRST` of them, on every 2nd step, as far as its budget pays.
    3. A decision waits for one. It gets it if the budget pays for those to come too.
    4. Else the step is measured by chance, at a rate that the budget bears.

    Example: overhead=0.05, a measurement takes as long as a step, and the run is long. Of the first 48 steps every 2nd
    is measured. Then it is about one in 10 while the batch may still change, and one in 80 once it has settled.

    The first step is always measured, so that a model that cannot be measured fails there and not later. The random
    generator is its own, so that the random numbers of training stay the same.
    """

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead
        self._rng = random.Random(0)
        # Of the budget:
        self._rate = overhead / EAGER  # assumes that a measurement costs one step, until one has been timed
        self._even = overhead  # the rate that would spend the overhead evenly over the whole run
        self._left = math.inf  # measurements that the budget still pays for; unknown until some have been timed
        self._sure = math.inf  # those that it would still pay for if the run took half of the time that seems left
        self._due = 0.0  # decisions still to come, for each of which one of them is kept
        # Of the latest decisions:
        self._kept, self._settled = 0, False  # consecutive decisions that kept the batch size
        self._full = False  # True if a settled batch is at a limit, which measuring more hardly changes
        # Of the steps:
        self._asked = self._measured = 0
        self._quiet = 0  # steps to come that are known not to be measured
        self._chosen = False  # True if the step after them has been chosen

    def pass_quiet_step(self) -> bool:
        """Pass the next step if it is known not to be measured; else return False: `measure_next` is to be asked."""
        if not self._quiet:
            return False
        self._quiet -= 1
        return True

    def choose_anew(self) -> None:
        """Forget the quiet steps: what they were chosen by has changed."""
        self._quiet, self._chosen = 0, False

    def _choose_ahead(self, steps: float, chance: float) -> None:
        """Choose among the steps to come, which are alike, all at once: nearly all of them are not measured.

        Args:
            steps: how many are alike.
            chance: of each to be measured.
        """
        gap, steps = math.inf, max(min(steps, FAR), 0)
        if chance:
            gap = math.log1p(-self._rng.random()) / math.log1p(-chance)
        self._chosen, self._quiet = gap < steps, int(min(gap, steps))

    def measure_next(
        self,
        steps_in_run: float,
        awaited: int = 0,
        progress: float = 0.0,
        steps_at_first: float = 0.0,
        news_due_at: float = 0.0,
    ) -> bool:
        """True if the next step should be measured.

        Args:
            steps_in_run: length of the run, steps.
            awaited: number of decisions in a row that nothing new has been measured for, the next one included if it
                is due now; 0 if none waits.
            progress: share of the run done, 0..1.
            steps_at_first: length of the run at its first batch size, steps. 0: nothing is measured beyond the budget.
            news_due_at: share of the run from which on another decision waits for a measurement.
        """
        if self._overhead == 0 or (self._quiet and self.pass_quiet_step()):
            return False
        first, self._asked = self._asked == 0, self._asked + 1
        chosen_ahead, self._chosen = self._chosen, False
        every_second = self._asked % 2 == 1
        may_be_beyond = self._measured * LEAST_APART < steps_at_first
        over_run = OVER_RUN * min(1.0, self._overhead / IN_FULL) * (AT_LIMIT if self._full else 1)
        if may_be_beyond and not first and self._measured < AT_ONCE + over_run * progress:
            # These are spread by chance too, but for those at the start.
            chosen = every_second if self._measured < AT_ONCE else self._rng.random() < DENSEST
        elif first or self._is_at_start(steps_in_run):
            chosen = every_second
        elif awaited and self._left == math.inf and not every_second:
            chosen = False  # the cost is the difference to a step without one, so until it is known some have none
        else:
            chance = 0.0 if awaited else self._chance(steps_in_run)
            chosen = self._pays_for(awaited) if awaited else chosen_ahead or self._rng.random() < chance
            least_due_at = (self._measured - AT_ONCE) / over_run if may_be_beyond and over_run else math.inf
            alike_until = min(least_due_at, news_due_at)
            if not chosen and alike_until > progress:
                self._choose_ahead((alike_until - progress) * steps_in_run - 1, chance)
        if chosen:
            self._measured, self._left = self._measured + 1, self._left - 1
        return chosen

    def _is_at_start(self, steps_in_run: float) -> bool:
        """True while measurements at the start are to be made, on every 2nd step, and the budget pays for them."""
        # Until a measurement has been timed, it may cost two steps.
        affordable = FIRST if self._left < math.inf else min(FIRST, self._overhead * steps_in_run / 2)
        # The start may use up a part of the budget at most, as the budget shrinks while the batch grows.
        return self._measured < affordable and self._left >= (AT_FIRST - 1) * self._measured

    def _pays_for(self, awaited: int) -> bool:
        """True if the budget pays for the decision that waits, the `awaited`-th in a row.

        Where it pays for fewer measurements than decisions are due, these are told apart evenly: with 4 left for 8
        decisions the 2nd that waits gets one, and then the 2nd again.
        """
        # A batch that doubles leaves less to spend, so only a mean of both counts while it may.
        likely = self._left if self._settled else (self._left + self._sure) / 2
        return self._left >= 1 and awaited * likely >= self._due

    def _chance(self, steps_in_run: float) -> float:
        """The chance of a step to be measured where no decision waits, 0..1."""
        if self._left - self._due < 1:
            return 0.0
        # While the batch may still change, measurements affect decisions, so they come at twice the even rate. Once the
        # batch has settled, they are as rare as the estimate can bear without falling behind.
        if not self._settled:
            return min(DENSEST, EAGER * self._rate)
        return min(self._rate, max(IDLE * self._even, KEEP_UP / max(steps_in_run, 1)))

    def decided(self, decision: Decision, batch_size: int, estimate: NoiseScale | None) -> None:
        """Record a decision that was made from this estimate at this batch size."""
        self.choose_anew()
        self._kept = self._kept + 1 if decision.batch_size == batch_size else 0
        self._settled = has_settled(decision, estimate, self._kept)
        self._full = self._settled and decision.reason in AT_A_LIMIT

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
        decisions_left: float = 0.0,
    ) -> None:
        """Set the rate by `measuring_rate`, and the number of measurements allowed before the next call.

        Of those that the budget pays for, one is kept for each decision to come, so that the budget lasts to the end.

        The fixed work of every step is charged to the overhead too, up to the share `STANDING`. It may not use up all
        of the overhead, because measuring less would not make that work cheaper.

        Args:
            elapsed, spent, seconds_left, step, cost, speed: as for `measuring_rate`.
            per_step: seconds of adaptbs's fixed work at every step.
            decisions_left: decisions that will be due in the time left.
        """
        if step > 0 and cost > 0:
            self.choose_anew()
            overhead = self._overhead - min(per_step / step, STANDING * self._overhead)
            self._even = overhead * speed * step / cost
            self._rate = measuring_rate(
                overhead,
                elapsed=elapsed,
                spent=spent,
                seconds_left=seconds_left,
                step=step,
                cost=cost,
                speed=speed,
                reserved=decisions_left * cost,
            )
            self._left = max(0.0, overhead * (elapsed + speed * seconds_left) - spent) / cost
            self._sure = max(0.0, overhead * (elapsed + speed * seconds_left / 2) - spent) / cost
            self._due = decisions_left

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = self._rng.getstate()
        return {"rng": [version, list(words), gauss], **{name: getattr(self, f"_{name}") for name in _REMEMBERED}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))
        for name in _REMEMBERED:
            setattr(self, f"_{name}", state[name])


_OF_BUDGET, _OF_DECISIONS = ("rate", "even", "left", "sure", "due"), ("kept", "settled", "full")
_REMEMBERED = (*_OF_BUDGET, *_OF_DECISIONS, "asked", "measured", "quiet", "chosen")
