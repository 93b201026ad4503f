"""Where a run's seconds come from: the protocol of a clock, a given step time, the first rank's clock, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from ..ranks import Ranks
from .step_time import StepTime

# Cost of a measurement in steps where no clock is read (docs/measuring.md): in a pass of its own, and in the step.
MEASURING = 1.0
MEASURING_IN_STEP = 0.5


@dataclass
class Timings:
    """Seconds that a clock has recorded since it was last read.

    Attributes:
        steps: (batch size, seconds) of each step, without the seconds of measuring.
        measurements: seconds of each measurement, including the slowdown that it causes in the steps around it.
        measured_steps: (batch size, seconds) of each step that was itself measured, with the seconds of measuring.
        deciding: total seconds of reading, estimating and deciding between steps, and of passes of our own beside steps
            that are themselves measured, as only the first few have them.
    """

    steps: list[tuple[int, float]] = field(default_factory=list)
    measurements: list[float] = field(default_factory=list)
    measured_steps: list[tuple[int, float]] = field(default_factory=list)
    deciding: float = 0.0


class Clock(Protocol):
    """Times each step from one call of `step` to the next. Call `start` first, so that earlier work is not counted.

    Attributes:
        per_step: seconds that adaptbs takes at every step, measured or not.
        aftermath: seconds by which a step measured as it trains slows down the steps after it.
        measures: True if the step under way is itself measured.
    """

    per_step: float
    aftermath: float

    @property
    def measures(self) -> bool: ...

    def start(self) -> None: ...
    def step(self, batch_size: int) -> None: ...
    def measuring(self, batch_size: int) -> AbstractContextManager[None]: ...
    def measuring_step(self) -> None: ...
    def deciding(self) -> AbstractContextManager[None]: ...
    def read(self) -> Timings: ...


class GivenClock:
    """Takes the seconds of a step from `step_time` instead of a clock, so that a run can be repeated to the bit."""

    per_step = aftermath = 0.0

    def __init__(self, step_time: StepTime) -> None:
        self._step_time = step_time
        self._sizes: list[int] = []
        self._measurements: list[float] = []
        self.measures = False

    def start(self) -> None:
        return None

    def step(self, batch_size: int) -> None:
        self._sizes.append(batch_size)
        if self.measures:
            self._measurements.append(MEASURING_IN_STEP * self._step_time(batch_size))
            self.measures = False

    @contextmanager
    def measuring(self, batch_size: int) -> Iterator[None]:
        try:
            yield
        finally:
            if not self.measures:
                self._measurements.append(MEASURING * self._step_time(batch_size))

    def measuring_step(self) -> None:
        self.measures = True

    def deciding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self) -> Timings:
        seconds = {size: self._step_time(size) for size in set(self._sizes)}
        steps = list(zip(self._sizes, map(seconds.__getitem__, self._sizes), strict=True))
        timings = Timings(steps, self._measurements)
        self._sizes, self._measurements = [], []
        return timings


class AgreedClock:
    """Wraps a clock so that every rank reads rank 0's times. Ranks have to read alike in order to decide alike."""

    def __init__(self, clock: Clock, ranks: Ranks) -> None:
        self._clock, self._ranks, self.per_step = clock, ranks, clock.per_step
        self.aftermath = clock.aftermath
        self.start, self.step, self.measuring, self.deciding = clock.start, clock.step, clock.measuring, clock.deciding
        self.measuring_step = clock.measuring_step

    @property
    def measures(self) -> bool:
        return self._clock.measures

    def read(self) -> Timings:
        """Return rank 0's timings, and take over what it charges. Collective: every rank has to call it."""
        timings, clock = self._clock.read(), self._clock
        timings, self.per_step, self.aftermath = self._ranks.agree((timings, clock.per_step, clock.aftermath))
        return timings


class NoClock:
    """Records nothing. It serves runs that measure nothing, where no decision needs the time."""

    per_step = aftermath = 0.0
    measures = False

    def start(self) -> None:
        return None

    def step(self, batch_size: int) -> None:
        return None

    def measuring(self, batch_size: int) -> AbstractContextManager[None]:
        return nullcontext()

    def measuring_step(self) -> None:
        return None

    def deciding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self) -> Timings:
        return Timings()
