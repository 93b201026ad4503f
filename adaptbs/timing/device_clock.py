"""Seconds of steps and of measurements on a device, by the host's clock or by CUDA events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..model import with_index
from .clock import Timings

if TYPE_CHECKING:
    from torch import device as Device

# Seconds of adaptbs's own work on the host at every step, measured or not (docs/measuring.md): in a loop of one's own
# around the loader, and in a Learner, which tells its callbacks of ten events a step.
PER_STEP = 3.5e-5
PER_STEP_OF_A_LEARNER = 1e-4
# A measurement empties the processor's caches, which slows down the steps after it. So it is charged: so many times its
# seconds where it is a pass of its own, and so many seconds where it is a step that trains.
AFTERMATH = 1.1
AFTERMATH_IN_STEP = 3e-4
READ_EVERY = 1000  # steps after which times are read at the latest, since CUDA keeps an event for each that is not

Moment: TypeAlias = Any  # seconds of the host's clock (float), or a torch.cuda.Event on a CUDA device


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
        """Bind the watch to a device. Return the function that marks a moment there."""
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
    the host, it delays each step. So `per_step` is what is given, and `aftermath` its constant, times the share of the
    latest steps at whose end the GPU had already come to their begin. A CPU always has.

    Args:
        device: the device that trains.
        per_step: seconds of work on the host at every step.
    """

    def __init__(self, device: Device, per_step: float = PER_STEP) -> None:
        self._watch = Stopwatch(device)
        self.per_step, self.aftermath, self._on_host = per_step, AFTERMATH_IN_STEP, per_step
        # Read from the watch, but not yet by the caller; what `Timings.deciding` is to be is added up apart.
        self._timings, self._deciding = Timings(), 0.0
        self._marked = self._delayed = 0  # steps since the last read, and those at whose end the device was not behind
        self._last: Moment | None = None
        self._inside: tuple[tuple[Moment, Moment], ...] = ()
        self.measures = False  # True if the step under way is itself measured
        self._steps: list[tuple[int, Moment, Moment, tuple[tuple[Moment, Moment], ...], bool]] = []
        self._decisions: list[tuple[Moment, Moment]] = []

    def start(self) -> None:
        self._last, self._inside, self.measures = self._watch.mark(), (), False

    def step(self, batch_size: int) -> None:
        # This runs at every step, with the processor's caches full of the model's. The less it touches, the better.
        last, self._last = self._last, self._watch.mark()
        if type(last) is float:  # a host's moment has passed, so its seconds are known
            if self._inside or self.measures:
                self._add(batch_size, self._last - last, self._inside, self.measures)
            else:
                self._timings.steps.append((batch_size, self._last - last))
        elif last is not None:
            self._marked, self._delayed = self._marked + 1, self._delayed + self._watch.reached(last)
            self._steps.append((batch_size, last, self._last, self._inside, self.measures))
            if len(self._steps) >= READ_EVERY:
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
            share = self._delayed / self._marked
            self.per_step, self.aftermath = self._on_host * share, AFTERMATH_IN_STEP * share
            self._marked = self._delayed = 0
        timings, self._timings = replace(self._timings, deciding=self._deciding), Timings()
        self._deciding = 0.0
        return timings

    def _take_in(self) -> None:
        """Read the times of all steps that the device has finished. Does not wait for the others."""
        reached = self._watch.reached
        late = (i for i, (_, _, end, *_) in enumerate(self._steps) if not reached(end))
        done = next(late, len(self._steps))
        steps, self._steps = self._steps[:done], self._steps[done:]
        whole = self._watch.all_seconds([(begin, end) for _, begin, end, *_ in steps])
        for (batch_size, _, _, inside, measures), seconds in zip(steps, whole, strict=True):
            self._add(batch_size, seconds, inside, measures)
        # Each is asked once: it may be reached between two answers.
        decisions = [(span, reached(span[1])) for span in self._decisions]
        decided = [span for span, is_reached in decisions if is_reached]
        self._decisions = [span for span, is_reached in decisions if not is_reached]
        self._deciding += sum(self._watch.all_seconds(decided))

    def _add(self, batch_size: int, seconds: float, inside: Sequence[tuple[Moment, Moment]], measures: bool) -> None:
        """Add a step that took so long, together with the passes of our own beside it."""
        timings = self._timings
        if inside:
            passes = self._watch.all_seconds(inside)
            seconds -= sum(passes)
            if measures:
                self._deciding += sum(passes)
            else:
                timings.measurements.extend(AFTERMATH * each for each in passes)
        (timings.measured_steps if measures else timings.steps).append((batch_size, seconds))
