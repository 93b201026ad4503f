"""Seconds of steps and of measurements: by the host's clock, by CUDA events, or by a given model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from ..model import with_index
from ..ranks import Ranks
from .step_time import StepTime

if TYPE_CHECKING:
    from torch import device as Device

# Seconds of adaptbs's own work on the host at every step, measured or not (docs/measuring.md): in a loop of one's own
# around the loader, and in a Learner, which tells its callbacks of ten events a step.
PER_STEP = 3.5e-5
PER_STEP_OF_A_LEARNER = 1.5e-4
AFTERMATH = 1.1  # charge for a measurement over its seconds: an allowance for caches that have to be filled again
READ_EVERY = 1000  # steps after which times are read at the latest, since CUDA keeps an event for each that is not
# Cost of a measurement in steps where no clock is read (docs/measuring.md): in a pass of its own, and in the step.
MEASURING = 1.0
MEASURING_IN_STEP = 0.5

Moment: TypeAlias = Any  # seconds of the host's clock (float), or a torch.cuda.Event on a CUDA device


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
        measures: True if the step under way is itself measured.
    """

    per_step: float

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

    per_step = 0.0

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
        self.start, self.step, self.measuring, self.deciding = clock.start, clock.step, clock.measuring, clock.deciding
        self.measuring_step = clock.measuring_step

    @property
    def measures(self) -> bool:
        return self._clock.measures

    def read(self) -> Timings:
        """Return rank 0's timings and take over its `per_step`. Collective: every rank has to call it."""
        timings, self.per_step = self._ranks.agree((self._clock.read(), self._clock.per_step))
        return timings


class NoClock:
    """Records nothing. It serves runs that measure nothing, where no decision needs the time."""

    per_step, measures = 0.0, False

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


class Stopwatch:
    """Marks moments now and reads them later.

    On CUDA the moments are events, because the host's clock would only time how fast work is queued.

    Args:
        device: the device that works, or a function that tells it at the first mark. Until then a model may be moved.
    """

    def __init__(self, device: Device | Callable[[], Device]) -> None:
        self._cuda: Device | None = None

        #: Returns the moment at which the device will have finished all work queued so far.
        self.mark: Callable[[], Moment] = partial(self._first_mark, device) if callable(device) else self._begin(device)

    def _begin(self, device: Device) -> Callable[[], Moment]:
        """Bind the watch to a device; how a moment is marked there."""
        self._cuda = with_index(device) if device.type == "cuda" else None
        return time.perf_counter if self._cuda is None else self._record

    def _first_mark(self, device: Callable[[], Device]) -> Moment:
        self.mark = self._begin(device())
        return self.mark()

    def _record(self) -> Moment:
        event: Moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._cuda))
        return event

    def wait(self) -> None:
        """Wait until the device has reached every marked moment."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)

    def reached(self, moment: Moment) -> bool:
        """True if the device has reached this moment. Does not wait."""
        return self._cuda is None or bool(moment.query())

    def seconds(self, begin: Moment, end: Moment) -> float:
        """Seconds between two moments that the device has reached."""
        return self.all_seconds([(begin, end)])[0]

    def all_seconds(self, spans: Sequence[tuple[Moment, Moment]]) -> list[float]:
        """Seconds of each of these spans, whose moments the device has reached."""
        if self._cuda is None:
            return [float(end - begin) for begin, end in spans]
        return [begin.elapsed_time(end) / 1000 for begin, end in spans]  # CUDA gives milliseconds


class DeviceClock:
    """Marks the end of each step and reads the times later, so that no step waits for the device.

    While a GPU is still busy with earlier steps, adaptbs's own work on the host costs no time. Where the GPU waits for
    the host, it delays each step. So `per_step` is what is given, times the share of the latest steps at whose end the
    GPU had already come to their begin. A CPU always has.

    Args:
        device: the device that trains.
        per_step: seconds of work on the host at every step.
    """

    def __init__(self, device: Device, per_step: float = PER_STEP) -> None:
        self._watch = Stopwatch(device)
        self.per_step = self._on_host = per_step
        self._timings = Timings()  # read from the watch, but not yet by the caller
        self._marked = self._delayed = 0  # steps since the last read, and those at whose end the device was not behind
        self._last: Moment | None = None
        self._inside: tuple[tuple[Moment, Moment], ...] = ()
        self.measures = False  # whether the step under way is itself measured
        self._steps: list[tuple[int, Moment, Moment, tuple[tuple[Moment, Moment], ...], bool]] = []
        self._decisions: list[tuple[Moment, Moment]] = []

    def start(self) -> None:
        self._last, self._inside, self.measures = self._watch.mark(), (), False

    def step(self, batch_size: int) -> None:
        # This runs at every step, with the processor's caches full of the model's. The less it touches, the better.
        last, self._last = self._last, self._watch.mark()
        if last is not None:
            if type(last) is not float:  # a host's moment has passed
                self._marked, self._delayed = self._marked + 1, self._delayed + self._watch.reached(last)
            steps = self._steps
            steps.append((batch_size, last, self._last, self._inside, self.measures))
            if len(steps) >= READ_EVERY:
                self._take_in()
        if self._inside or self.measures:
            self._inside, self.measures = (), False

    def measuring_step(self) -> None:
        """The step under way is itself measured, by hooks on its layers."""
        self.measures = True

    @contextmanager
    def measuring(self, batch_size: int) -> Iterator[None]:
        begin = self._watch.mark()
        try:
            yield
        finally:
            self._inside = *self._inside, (begin, self._watch.mark())

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Time the work between two steps. The next step begins when this context ends."""
        begin = self._watch.mark()
        try:
            yield
        finally:
            self._last = self._watch.mark()
            self._decisions.append((begin, self._last))

    def read(self) -> Timings:
        if self._steps or self._decisions:
            self._watch.wait()
        self._take_in()
        if self._marked:
            self.per_step = self._on_host * self._delayed / self._marked
            self._marked = self._delayed = 0
        timings, self._timings = self._timings, Timings()
        return timings

    def _take_in(self) -> None:
        """Read the times of all steps that the device has finished. Does not wait for the others."""
        reached, timings = self._watch.reached, self._timings
        late = (i for i, (_, _, end, *_) in enumerate(self._steps) if type(end) is not float and not reached(end))
        done = next(late, len(self._steps))  # a host's moment has passed
        steps, self._steps = self._steps[:done], self._steps[done:]
        whole, beside = self._watch.all_seconds([(begin, end) for _, begin, end, *_ in steps]), 0.0
        for (batch_size, _, _, inside, measures), seconds in zip(steps, whole, strict=True):
            if inside:
                measured = self._watch.all_seconds(inside)
                if measures:
                    beside += sum(measured)
                else:
                    timings.measurements.extend(AFTERMATH * each for each in measured)
                seconds -= sum(measured)
            (timings.measured_steps if measures else timings.steps).append((batch_size, seconds))
        decided = [span for span in self._decisions if reached(span[1])]
        self._decisions = [span for span in self._decisions if not reached(span[1])]
        deciding = timings.deciding + beside + sum(self._watch.all_seconds(decided))
        self._timings = replace(timings, deciding=deciding)
