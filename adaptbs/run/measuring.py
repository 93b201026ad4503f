"""Measures steps of a run, by watching them or in a pass of its own. No failure ends the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from traceback import clear_frames
from typing import Any

from ..gradients import NoiseMeter
from ..memory import is_out_of_memory
from ..model import LossNotScalarError
from ..types import Measurement
from .controller import Controller
from .holds import UNMEASURED
from .measurement_checks import SAID, MeasurementChecks
from .measurement_failures import FAILED, FAILED_FOR_TARGET, advice_for, cause_of
from .sums import SumCheck
from .tracker import BatchTracker

log = logging.getLogger(__name__)

PATIENCE = 16  # optimizer steps' worth of batches for which a step is waited for that is to be measured


class StepMeasuring:
    """Hands the steps whose turn it is to a meter, and its measurements to the controller.

    Args:
        meter: measures steps; None where nothing is measured.
        controller: takes in the measurements, and the time that they take.
        tracker: knows the batches that the loop may work on.
        sums: holds the batch where the loss sums over it.
        world_size: number of ranks that a step's samples are spread over.

    Attributes:
        meter: None once nothing can be measured.
        watches: True while a step is being watched: call `before_step` when its gradients are ready.
    """

    def __init__(
        self,
        meter: NoiseMeter | None,
        controller: Controller,
        tracker: BatchTracker,
        sums: SumCheck,
        world_size: int = 1,
    ) -> None:
        self.meter, self.watches, self._sums = meter, False, sums
        self._controller, self._tracker, self._world_size = controller, tracker, world_size
        self._checks = MeasurementChecks(controller, world_size)
        self._latest = self._before = 0  # this rank's samples of the latest batch, and of the one before
        self._delivered: list[int] = []  # this rank's samples of each batch delivered while a step is watched
        self._is_whole = False  # True if the step that is watched is known to be so from its first batch
        self._waited = 0  # batches for which a step was waited for, also in epochs before
        self._in_vain = self._to_skip = 0  # steps waited for that never came, and measurements to leave out after them

    def begin(self, batch: Any) -> None:
        """Begin to watch the step that comes, or measure its batch in a pass of its own.

        Raises:
            LossNotScalarError: if the loss that was given returns something other than one number.
        """
        meter = self.meter
        if meter is None:
            return
        if self._to_skip:
            self._to_skip -= 1
            return
        self._delivered, self._is_whole = [], not self._latest  # as the run's first step is
        if meter.in_step:
            self._begin_to_watch(meter, batch)
        else:
            self._measure_in_a_pass(meter, batch)
        self.watches = self.meter is not None and meter.is_armed

    def _begin_to_watch(self, meter: NoiseMeter, batch: Any) -> None:
        controller, num_samples = self._controller, self._tracker.latest_fetched.num_samples
        self._waited += 1
        self._deliver(self._tracker.current.num_samples)
        controller.measuring_step()
        if meter.looks:  # only at the first few, so it is no part of what a measurement costs
            with self._may_fail(batch), controller.measuring(num_samples):
                meter.look(batch, num_samples)
            if self.meter is None:
                return
        with self._may_fail(batch):
            self._take_in(meter.begin(batch, num_samples, self._sizes))

    def _measure_in_a_pass(self, meter: NoiseMeter, batch: Any) -> None:
        memory, num_samples = self._controller.memory, self._tracker.latest_fetched.num_samples
        self._deliver(num_samples)
        if num_samples > memory.piece:  # it is trained on in pieces, too
            num_samples = int(memory.piece)
            with self._may_fail(batch):
                batch = meter.first(batch, num_samples)
            if self.meter is None:
                return
        with self._may_fail(batch), self._controller.measuring(num_samples):
            self._take_in(meter.begin(batch, num_samples, self._sizes))

    def go_on(self) -> None:
        """Another batch is delivered while a step is watched: the step goes on, or is given up."""
        self._deliver(self._tracker.current.num_samples)
        if self.meter is None or self._waited >= PATIENCE * self._controller.batches_per_step:
            self.stop()  # no step is made, or by another optimizer
            self._in_vain += 1
            self._to_skip = PATIENCE << self._in_vain  # ever more: to watch is not for nothing
            self._checks.look_at_no_step(self._waited)
            self._waited = 0
        else:
            self._waited += 1
            self._controller.measuring_step()
            self.meter.expect(*self._sizes)

    def _deliver(self, num_samples: int) -> None:
        """Add a batch to those of the watched step, given its samples of all ranks."""
        self._before = self._latest
        self._latest = num_samples // self._world_size
        self._delivered.append(self._latest)

    def before_step(self) -> None:
        """Take in the measurement of the step that was watched.

        Its gradients are ready, and nothing has changed them but a loss scale or clipping.
        """
        if self.meter is not None:
            with self._may_fail(None):
                made, step = self.meter.end(sum(self._delivered), self._sizes, len(self._delivered)), SAID
                if made is not None:
                    step = self._checks.look_at_the_step(made, self._delivered, self._is_whole)
                if not step.may_be_part:
                    self._take_in(made)
                if step.watch_next:
                    self.meter.watch(self._sizes)
            self.watches = self.meter is not None and self.meter.is_armed
            self._in_vain = self._waited = 0
            self._checks.saw_a_step()
            self._delivered, self._is_whole = [], True  # if it watches on, it watches the next step

    def _take_in(self, made: Measurement | None) -> None:
        """Hand a measurement to the controller and to the checks."""
        self._controller.measured(made)
        if made is None:
            if self.meter is not None:
                by_halves = not self.meter.in_step
                self._checks.look_at_nothing(sum(self._delivered), self.meter.fewest, by_halves=by_halves)
            return
        if self.meter is not None:
            self._sums.look(self.meter)
        self._checks.look(made)

    def give_up(self) -> None:
        """Measure nothing from here on."""
        self.stop()
        self.meter = None
        self._controller.forget_measurements()

    @property
    def by_halves(self) -> bool:
        """True if batches are measured in passes of their own, before the step."""
        return self.meter is not None and not self.meter.in_step

    def stop(self) -> None:
        """Watch the step no longer."""
        if self.watches and self.meter is not None:
            self.meter.stop()
        self.watches = False

    @property
    def _sizes(self) -> list[int]:
        """Samples of this rank in the batches that the loop may work on, and in the pieces that they go through in."""
        infos = (self._tracker.current, self._tracker.latest_fetched)
        # Of a step with a closure, gradients are there only when the next is about to be made.
        sizes = [info.num_samples // self._world_size for info in infos] + self._delivered
        sizes += [self._before or self._latest]
        pieces = [max(ceil(n / self._controller.memory.piece), 1) for n in sizes]
        return [length for n, k in zip(sizes, pieces, strict=True) for length in {n, n // k, -(-n // k)}]

    @contextmanager
    def _may_fail(self, batch: Any) -> Iterator[None]:
        """Let a measurement that fails end no run: it is left out if memory ran out, else the batch size is held."""
        failure: Exception | None = None
        try:
            yield
        except LossNotScalarError:
            raise  # a fault of the argument, seen at the first batch
        except Exception as error:
            clear_frames(error.__traceback__)  # which would keep alive what the failed pass holds
            failure = error.with_traceback(None)
        if failure is None:
            return
        self.stop()
        if is_out_of_memory(failure):
            self._controller.memory.release()
            log.warning("memory ran out while a batch was measured, so it was not measured: %s", failure)
            return
        cause, advice = cause_of(failure, batch), advice_for(failure, self.meter)
        if self._controller.rules.needs_noise_scale:
            self._controller.holds.doubt(UNMEASURED, FAILED, cause, advice)
        else:
            self._controller.holds.warn(FAILED_FOR_TARGET, cause, advice)
        self.give_up()
