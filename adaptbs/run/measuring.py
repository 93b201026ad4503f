"""Measures steps of a run, by watching them or in a pass of its own. No failure ends the run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import ceil
from traceback import clear_frames
from typing import Any

from ..gradients import NoiseMeter, Unsupported
from ..memory import is_out_of_memory
from ..model import LossNotScalarError, NotCutError, describe_batch
from ..types import COUPLED, Measurement
from .controller import Controller
from .holds import ACCUMULATES, NOT_SAMPLES, UNMEASURED
from .sums import SumCheck
from .tracker import BatchTracker

log = logging.getLogger(__name__)

PATIENCE = 16  # optimizer steps' worth of batches for which a step is waited for that is to be measured
ANY_LAYOUT = "batch_loss=(model, batch) -> loss takes batches of any layout; "
BY_LOSS = "loss_func=, or batch_loss=(model, batch) -> loss, lets it be measured by halves in a pass of its own; "
FAILED = (
    "the noise scale cannot be measured, so the batch size is held: %s. %soverhead=0 measures nothing and holds the "
    "batch."
)
FAILED_FOR_TARGET = (
    "the noise scale cannot be measured, so target= is given None for it: %s. %soverhead=0 measures nothing."
)
LATEST, ALIKE = 6, 3  # of so many measured steps so many that are made of as many batches, which is no accident
UNSAID = (
    "an optimizer step is made of the gradients of %d batches, and of %d as the loader was told, so the batch would "
    "grow to several times the samples that the noise allows, and is held. Give accumulation_steps=%d (to a Learner "
    "fastai's callback GradientAccumulation, in place of one of your own)."
)
ONE = (
    "a step of one sample shows no noise, so nothing is measured, and the batch stays as it is. Start with batch_size= "
    "of 4 or more."
)
WRONG = (
    "the model sees %s, so the noise scale is not that of samples, and the batch is held. Keep samples along the first "
    "dimension of what collate_fn= returns and the model is called on, or give batch_size= in rows: let an item of the "
    "dataset be a row. Where several batches' losses are added up, call backward() on each instead."
)


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
        self._ones = 0  # steps of a single sample that told nothing
        self._said, self._right = False, 0  # measurements in a row that were of samples
        self._made_of: deque[int] = deque(maxlen=LATEST)  # batches of each measured step; 0: not all of its samples
        self._is_unsaid = False  # True once steps are known to be made of more batches than was said
        self._latest = self._before = 0  # this rank's samples of the latest batch, and of the one before
        self._delivered: list[int] = []  # this rank's samples of each batch delivered while a step is watched
        self._is_whole = False  # True if the step that is watched is known to be so from its first batch

    def begin(self, batch: Any) -> None:
        """Begin to watch the step that comes, or measure its batch in a pass of its own.

        Raises:
            LossNotScalarError: if the loss that was given returns something other than one number.
        """
        meter, controller = self.meter, self._controller
        if meter is None:
            return
        num_samples = self._tracker.latest_fetched.num_samples
        self._delivered, self._is_whole = [], not self._latest  # as the run's first step is
        self._deliver(num_samples if not meter.in_step else self._tracker.current.num_samples)
        if not meter.in_step and num_samples > controller.memory.piece:  # it is trained on in pieces, too
            num_samples = int(controller.memory.piece)
            with self._may_fail(batch):
                batch = meter.first(batch, num_samples)
            if self.meter is None:
                return
        if meter.in_step:
            controller.measuring_step()
            if meter.looks:  # only at the first few, so it is no part of what a measurement costs
                with self._may_fail(batch), controller.measuring(num_samples):
                    meter.look(batch, num_samples)
                if self.meter is None:
                    return
        timed = nullcontext() if meter.in_step else controller.measuring(num_samples)
        with self._may_fail(batch), timed:
            self._take_in(meter.begin(batch, num_samples, self._sizes))
        self.watches = meter.is_armed

    def go_on(self) -> None:
        """Take note of another batch while a step is watched."""
        self._deliver(self._tracker.current.num_samples)
        if self.meter is None or len(self._delivered) > PATIENCE * self._controller.batches_per_step:
            self.stop()  # no step is made, or by another optimizer
        else:
            self._controller.measuring_step()
            self.meter.expect(*self._sizes)

    def _deliver(self, num_samples: int) -> None:
        """Take note of a batch that the loop works on while a step is watched, of so many samples of all ranks."""
        self._before = self._latest
        self._latest = num_samples // self._world_size
        self._delivered.append(self._latest)

    def before_step(self) -> None:
        """Take in the measurement of the step that was watched.

        Its gradients are ready, and nothing has changed them but a loss scale or clipping.
        """
        if self.meter is not None:
            with self._may_fail(None):
                made = self.meter.end(sum(self._delivered), self._sizes, len(self._delivered))
                is_part, again = self._look_at_the_step(made) if made is not None else (False, False)
                if not is_part:
                    self._take_in(made)
                if again:
                    self.meter.watch(self._sizes)  # the next one, as a whole
            self.watches = self.meter is not None and self.meter.is_armed
            self._delivered, self._is_whole = [], True  # if it watches on, it watches the next step

    def _look_at_the_step(self, made: Measurement) -> tuple[bool, bool]:
        """Hold the batch where steps are made of more batches than the loader was told.

        Returns:
            True if it may be only the end of such a step that was measured, and True if the next is to be watched too.
        """
        batches, said = len(self._delivered), self._controller.batches_per_step // self._world_size
        of_all = made.norms.large_size == sum(self._delivered)
        if of_all and (batches > said or self._is_unsaid) and not self._is_whole:
            return True, True
        self._made_of.append(batches if of_all else 0)
        if batches > said and self._made_of.count(batches) >= ALIKE and not self._is_unsaid:
            self._is_unsaid = True
            self._controller.holds.doubt(ACCUMULATES, UNSAID, batches, said, batches)
        return False, of_all and batches > said and not self._is_unsaid

    def _take_in(self, made: Measurement | None) -> None:
        """Take in a measurement, and hold the batch for as long as it is not one of samples."""
        self._controller.measured(made)
        if made is None:
            if sum(self._delivered) * self._world_size == 1 == self._controller.start_batch_size:
                self._ones += 1  # one that is a batch by itself is measured
                if self._ones == ALIKE and self._controller.rules.needs_noise_scale:
                    self._controller.holds.warn(ONE)
            return
        if self.meter is not None:
            self._sums.look(self.meter)
        if not made.wrong or made.read_caveat() == COUPLED:  # which holds the batch by itself
            self._right += 1  # one alone may be of a part of a step
            if self._right >= ALIKE:
                self._controller.holds.remove(NOT_SAMPLES)
            return
        self._right = 0
        self._controller.holds.add(NOT_SAMPLES)
        if not self._said:
            self._said = True
            self._controller.holds.warn(WRONG, made.read_caveat())

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
        meter, said = self.meter, str(failure)
        knows_loss = meter is not None and (meter.looks or not meter.in_step)
        advice = "" if isinstance(failure, NotCutError) else ANY_LAYOUT if knows_loss else BY_LOSS
        if not isinstance(failure, (NotCutError, Unsupported)):
            on = "" if batch is None else f" (the loss was called on a batch of {describe_batch(batch)})"
            said = f"{type(failure).__name__}: {said}{on}"
        if self._controller.rules.needs_noise_scale:
            self._controller.holds.doubt(UNMEASURED, FAILED, said, advice)
        else:
            self._controller.holds.warn(FAILED_FOR_TARGET, said, advice)
        self.give_up()
