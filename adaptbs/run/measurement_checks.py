"""Holds the batch where measured steps show that the noise scale is not that of the samples of a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ..types import COUPLED, Measurement
from .controller import Controller
from .holds import ACCUMULATES, NOT_SAMPLES, UNMEASURED

LATEST, ALIKE = 6, 3  # of the latest 6 measured steps, 3 of equally many batches are no accident
UNSAID = (
    "an optimizer step is made of the gradients of %d batches, and of %d as the loader was told, so the batch would "
    "grow to several times the samples that the noise allows, and is held. Give accumulation_steps=%d (to a Learner "
    "fastai's callback GradientAccumulation, in place of one of your own)."
)
ONE = (
    "a step of one sample shows no noise, so nothing is measured, and the batch stays as it is. Start with batch_size= "
    "of 4 or more."
)
ONE_OF_SEVERAL = (
    "the model is measured by halves of a batch, and a batch of one sample has none, so nothing is measured, and the "
    "batch stays as it is. Start with batch_size= of 2 or more, and accumulation_steps= of as many times fewer."
)
TOO_FEW = (
    "halves of a batch of %d are too short for BatchNorm, so nothing is measured, and the batch stays as it is. Start "
    "with batch_size= of %d or more."
)
NO_STEP = (
    "no step of the optimizer was seen in %d batches, so the noise scale is not measured, and the batch is held. To "
    "validate, use a stock DataLoader, or loader.plain_batches(). Where a step is made of so many batches, give "
    "accumulation_steps= (to a Learner fastai's callback GradientAccumulation). A Learner's own step has to fire its "
    "events, self._with_events(self._step, 'step', CancelStepException). overhead=0 measures nothing and holds the "
    "batch."
)
WRONG = (
    "the model sees %s, so the noise scale is not that of samples, and the batch is held. Keep samples along the first "
    "dimension of what collate_fn= returns and the model is called on, or give batch_size= in rows: let an item of the "
    "dataset be a row, and take out of it what collate_fn= leaves out. A model that itself makes several rows of a "
    "sample, as for multiple choice, is measured right by source='halves', for which the loss has to be known; so are "
    "several rows of a sample that collate_fn= puts into a batch, as of a pair, if split=(batch, start, stop) -> batch "
    "is given too. Where several batches' losses are added up, call backward() on each instead."
)


class StepMade(NamedTuple):
    """The loop's way to make a step, as a measured one shows it.

    Attributes:
        may_be_part: True if only the end of a step may have been measured, which made more batches than was said.
        watch_next: True if the next step is to be watched too, as a whole.
    """

    may_be_part: bool = False
    watch_next: bool = False


SAID = StepMade()  # as the loader was told


class MeasurementChecks:
    """Holds the batch, and warns once, where steps accumulate more than was said or where rows are not samples.

    Args:
        controller: the controller of the run.
        world_size: number of ranks that a step's samples are spread over.
    """

    def __init__(self, controller: Controller, world_size: int) -> None:
        self._holds, self._batches_said = controller.holds, controller.batches_per_step // world_size
        self._controller, self._world_size = controller, world_size
        self._short = 0  # steps that told nothing because they have too few samples
        self._made_of: deque[int] = deque(maxlen=LATEST)  # batches of each measured step; 0: not all of its samples
        self._accumulates = False  # True once steps are known to be made of more batches than was said
        self._right = 0  # measurements in a row that were of samples
        self._warned = self._waits = False

    def look_at_no_step(self, batches: int) -> None:
        """Hold the batch where a step that was to be measured never came, if nothing else tells why.

        Args:
            batches: number of batches for which it was waited.
        """
        rules = self._controller.rules
        if rules.needs_noise_scale and rules.may_change and self._holds.reason is None:
            self._waits = True
            self._holds.doubt(UNMEASURED, NO_STEP, batches)

    def saw_a_step(self) -> None:
        """Hold the batch no longer for want of a step."""
        if self._waits:
            self._waits = False
            self._holds.remove(UNMEASURED)

    def look_at_the_step(self, made: Measurement, delivered: Sequence[int], is_whole: bool) -> StepMade:
        """Hold the batch where steps are made of more batches than the loader was told.

        Args:
            made: the measurement of a step.
            delivered: samples of this rank in each batch delivered since the step before.
            is_whole: True if the step is known to have been watched from its first batch.
        """
        batches, said = len(delivered), self._batches_said
        of_all = made.norms.large_size == sum(delivered)
        if of_all and (batches > said or self._accumulates) and not is_whole:
            return StepMade(may_be_part=True, watch_next=True)
        self._made_of.append(batches if of_all else 0)
        if batches > said and self._made_of.count(batches) >= ALIKE and not self._accumulates:
            self._accumulates = True
            self._holds.doubt(ACCUMULATES, UNSAID, batches, said, batches)
        return StepMade(watch_next=of_all and batches > said and not self._accumulates)

    def look_at_nothing(self, num_samples: int, fewest: int, *, by_halves: bool) -> None:
        """Warn where steps tell nothing because each, or each of its batches, is made of too few samples.

        Args:
            num_samples: samples of this rank in the step; in its batch, if that is measured by halves.
            fewest: samples of the shortest batch that shows noise.
            by_halves: True if a batch is measured by itself, whatever others the step is made of.
        """
        parts = self._batches_said if by_halves else 1
        if num_samples < fewest and num_samples * parts * self._world_size == self._controller.start_batch_size:
            self._short += 1  # one that is a batch by itself is measured
            if self._short == ALIKE and self._controller.rules.needs_noise_scale:
                if num_samples == 1:
                    self._holds.warn(ONE if parts == 1 else ONE_OF_SEVERAL)
                else:
                    self._holds.warn(TOO_FEW, num_samples, fewest)

    def look(self, made: Measurement) -> None:
        """Hold the batch for as long as measurements are not of samples."""
        if not made.wrong or made.read_caveat() == COUPLED:  # which holds the batch by itself
            self._right += 1  # one alone may be of a part of a step
            if self._right >= ALIKE:
                self._holds.remove(NOT_SAMPLES)
            return
        self._right = 0
        self._holds.add(NOT_SAMPLES)
        if not self._warned:
            self._warned = True
            self._holds.warn(WRONG, made.read_caveat())
