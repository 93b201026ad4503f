"""Reads the clock, adds up the cost of measuring, and says how much measuring the run can still afford."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ranks import ALONE, Ranks
from .clock import AgreedClock, Clock, GivenClock, NoClock
from .device_clock import PER_STEP, DeviceClock
from .duty_cycle import TRY, DutyCycle
from .step_time import StepTime, StepTimes, Time

if TYPE_CHECKING:
    from torch import device as Device

KEEP = 16  # latest measurements whose cost is kept
CHEAPEST = 0.02  # of a step: a measurement is taken to cost at least that much, as the difference of two steps is noisy
# Times the median of measurements, and steps: what a measured step takes beyond the larger of the two is not charged,
# since it is a hiccup of the machine. One alone could use up the budget of a short run.
HICCUP, HICCUP_STEPS = 4, 2
TICKS = 1e12  # in a second: times are added up as integers, so that the sum does not depend on when they are read
CREDIT = 3  # a run that measuring has made faster may spend up to this many times `overhead` of its time on measuring


class Spent(NamedTuple):
    """The cost of measuring and deciding so far, as of the latest reading of the clock.

    Attributes:
        seconds: seconds of measuring and deciding.
        share: the same as a share of the time that training would have taken so far at the first batch size, as
            `overhead` is one. None until steps have been timed.
    """

    seconds: float
    share: float | None


class OverheadBudget:
    """Adds up the seconds of a run, and limits what measuring may cost.

    Args:
        given: the user's step time. If given, no clock is read.
        device: the device that trains.
        start: the batch size that the run begins with, samples.
        overhead: share of the run's time that measuring may cost, 0..1. It refers to the time that the run would take
            at its first batch size, since measuring is what makes it faster. It is at most `CREDIT` times this share
            of the time that the run really takes.
        ranks: the ranks that have to come to the same numbers.
        per_step: seconds of work of the face at every step, measured or not.
        clock: the clock to read; None: the device's.
    """

    def __init__(
        self,
        given: StepTime | None,
        device: Device,
        start: int,
        overhead: float,
        ranks: Ranks = ALONE,
        *,
        per_step: float = PER_STEP,
        clock: Clock | None = None,
    ) -> None:
        self._given, self._start, self._ranks = given, start, ranks
        self._given_first = given(start) if given else None  # seconds of a step at the first batch size
        self._agrees = ranks.connected and not given
        self.clock: Clock
        own: Clock = GivenClock(given) if given else DeviceClock(device, per_step) if overhead else NoClock()
        self.use_clock(own if clock is None else clock)
        self.step_times, self.duty = StepTimes(), DutyCycle(overhead)
        self._elapsed = 0  # ticks that training would have taken so far at the first batch size
        self._spent = 0  # ticks of measuring and deciding
        self._costs: deque[float] = deque(maxlen=KEEP)  # seconds of the latest measurements
        self._pending: list[tuple[int, float]] = []  # measured steps of sizes of which no other step was timed so far
        # The first measurement loads kernels and chooses algorithms, which is not what measuring costs.
        self._warming_up = given is None
        self.knows_cost = False  # True once a measurement has been timed, as of the latest look

    def use_clock(self, clock: Clock) -> None:
        """Read another clock from here on."""
        self.clock = AgreedClock(clock, self._ranks) if self._agrees else clock

    @property
    def step_time(self) -> Time | None:
        """t(B), seconds, as given or as fitted to the steps so far. None until enough steps of two sizes were timed."""
        return self._given or self.step_times.fit()

    @property
    def spent(self) -> Spent:
        """The cost of measuring and deciding so far. Reads no clock."""
        return Spent(self._spent / TICKS, self._spent / self._elapsed if self._elapsed else None)

    def read(self, *, alone: bool = False) -> None:
        """Add up what the clock has recorded since the last call. The host may have to wait for the device.

        Args:
            alone: True if the other ranks may not be reading now. Timings that ranks have to agree on then stay unread.
        """
        if alone and self._agrees:
            return
        timings = self.clock.read()
        self.step_times.add(*timings.steps)
        self._elapsed += _ticks(self._at_first(timings.steps))
        costs = timings.measurements + self._extra_of(timings.measured_steps)
        if costs and self._warming_up:
            self._warming_up, costs = False, costs[1:]
        self._costs.extend(costs)
        if not alone:  # to save a state is no look, and must not change the run
            self.knows_cost = bool(self._costs)
        self._spent += _ticks([*costs, timings.deciding])

    def _extra_of(self, measured_steps: Sequence[tuple[int, float]]) -> list[float]:
        """Seconds by which steps that were themselves measured took longer than others, with those after them."""
        costs, waiting, self._pending = [], [*self._pending, *measured_steps], []
        for size, seconds in waiting:
            usual = self.step_times.median(size)
            if usual is None:
                self._pending.append((size, seconds))
            else:
                costs.append(min(seconds - usual, self._most(usual)) + self.clock.aftermath)
                self._elapsed += _ticks(self._at_first([(size, usual)]))
        return costs

    def _most(self, usual: float) -> float:
        """The most seconds to charge for measuring in a step whose size usually takes `usual` seconds."""
        return max(HICCUP * self._usual_cost, HICCUP_STEPS * usual) if len(self._costs) >= TRY else math.inf

    @property
    def _usual_cost(self) -> float:
        """Median seconds of the latest measurements."""
        return sorted(self._costs)[len(self._costs) // 2]

    def calibrate(self, delivered: int, batch_size: int, samples_left: float, decisions_left: float = 0.0) -> None:
        """Set how often to measure from here on.

        Args:
            delivered: size of the latest batch, samples. Steps of this size have been timed.
            batch_size: size of the batches to come, samples.
            samples_left: samples that the run still has to see.
            decisions_left: decisions that will be due meanwhile.
        """
        self.duty.choose_anew()
        fitted = self.step_time
        step = fitted(batch_size) if fitted else self.step_times.median(delivered)
        if not step or not self._costs:
            return
        self.duty.calibrate(
            elapsed=self._elapsed / TICKS,
            spent=self._spent / TICKS,
            seconds_left=step * samples_left / batch_size,
            step=step,
            cost=max(self._usual_cost, CHEAPEST * step),
            per_step=self.clock.per_step,
            speed=self._at_first([(batch_size, step)])[0] / step,
            decisions_left=decisions_left,
        )

    def _at_first(self, steps: Sequence[tuple[int, float]]) -> list[float]:
        """Seconds that the samples of each step would take at the first batch size, up to `CREDIT` times its own."""
        first = self._given_first or self.step_times.median(self._start)
        if first is None:
            return [seconds for _, seconds in steps]
        sample = first / self._start
        return [min(max(sample * size, seconds), CREDIT * seconds) for size, seconds in steps]

    def state_dict(self) -> dict[str, Any]:
        """The state to save. Call `read` first, so that no timing is lost."""
        return {
            "step_times": self.step_times.state_dict(), "duty": self.duty.state_dict(),
            "elapsed": self._elapsed, "spent": self._spent, "costs": list(self._costs),
            "pending": [list(step) for step in self._pending], "warming_up": self._warming_up,
            "measures": self.clock.measures, "knows_cost": self.knows_cost,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_times.load_state_dict(state["step_times"])
        self.duty.load_state_dict(state["duty"])
        self._elapsed, self._spent = state["elapsed"], state["spent"]
        self._costs = deque(state["costs"], KEEP)
        self.knows_cost = state["knows_cost"]
        self._pending = [(size, seconds) for size, seconds in state["pending"]]
        self._warming_up = state["warming_up"]
        if state["measures"]:  # the step that the saved run was making
            self.clock.measuring_step()


def _ticks(seconds: Iterable[float]) -> int:
    return sum(map(round, map(TICKS.__mul__, seconds)))
