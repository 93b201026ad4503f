"""The length of a run, as far as its scheduler tells it, and as the loop's calls settle it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from .length_warnings import (
    ENDLESS,
    GOES_ON,
    GOES_ON_AS_SAID,
    NEVER_STEPPED,
    NO_LENGTH,
    SHORTER_THAN_ITS_CYCLE,
    STEPPED_BY_THE_EPOCH,
)
from .scheduler_steps import Total, run_epochs, total_of, whole_epochs

log = logging.getLogger(__name__)

NEVER_DONE = 1000  # times the dataset: no loop comes to the end of an epoch of so many samples


class RunLength:
    """The length of a run. Where only a scheduler tells it, and two readings are possible, its calls settle it.

    Steps may count batches, several of them, or epochs. A run shorter than an epoch has fewer steps than the epoch has
    batches, and so has a run whose scheduler is stepped once an epoch.

    Args:
        epochs: as the user says; None: the scheduler tells, if it does.
        scheduler: the loop's; None where there is none.
        start: batch size of the fixed run, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: batches of an epoch of the fixed run.
        accumulation_steps: batches of an optimizer step.
        dataset_samples: samples of the dataset; None where it does not say.

    Attributes:
        epochs: the length, as far as it is known; no whole number where the run ends within an epoch.
        is_open: True while calls of the scheduler have yet to show what its steps count.
        steps_of_epoch: optimizer steps of an epoch, as the scheduler's steps tell, where what its end leaves of one may
            make one or not; else None.
        may_be_cycles: True once they count batches that may be those of the run or of one of several cycles.
    """

    epochs: float | None

    def __init__(
        self,
        epochs: float | None,
        scheduler: object,
        *,
        start: int,
        epoch_samples: int,
        epoch_steps: int,
        accumulation_steps: int = 1,
        dataset_samples: int | None = None,
    ) -> None:
        self._start, self._epoch_samples, self._epoch_steps = start, epoch_samples, epoch_steps
        self._per_step, self._dataset_samples = accumulation_steps, dataset_samples
        total = total_of(scheduler) if scheduler is not None else None
        self._total = total if epochs is None else None
        self.steps_of_epoch = self._steps_of_epoch(total, epochs)
        self.epochs = epochs if epochs is not None else run_epochs(scheduler, epoch_steps, accumulation_steps)
        self.is_open, self.may_be_cycles = self._total is not None, False
        self._warned = self._is_longer = False
        self._unsaid: tuple[Any, ...] = ()  # text and values of a warning that was put off
        self._warn: Callable[..., None] = log.warning

    def _steps_of_epoch(self, total: Total | None, epochs: float | None) -> int | None:
        per_step, batches = self._per_step, self._epoch_steps
        if total is None or per_step == 1 or batches % per_step == 0:
            return None
        counts = (batches // per_step, -(-batches // per_step))
        if epochs is not None:
            return next((steps for steps in counts if steps * epochs == total.steps), None)
        return next((steps for steps in counts if 0 < steps <= total.steps and total.steps % steps == 0), None)

    def warn_by(self, warn: Callable[..., None]) -> None:
        """Give warnings to this from here on, as a text and its values."""
        self._warn = warn

    @property
    def is_unknown(self) -> bool:
        """True if the run goes on without a length: no call is to settle it, and the batch is not held for it."""
        return self.epochs is None and not self.is_open and not self.may_be_cycles

    def say_unknown(self) -> bool:
        """Warn of a run whose length is not known. Return True if it was warned of."""
        samples, drawn_from = self._epoch_samples, self._dataset_samples
        if drawn_from and samples >= NEVER_DONE * drawn_from and (self.epochs is None or self.epochs >= 1):
            self._warn(ENDLESS, samples, drawn_from)
            return True
        if self.is_unknown:
            self._warn(NO_LENGTH)
        return self.is_unknown

    @property
    def holds(self) -> bool:
        """True if the batch is held until it is settled: read the other way, the run would be much longer."""
        is_open = self.is_open and self._total is not None and self.epochs != self._total.steps
        return is_open or self.may_be_cycles

    def settle(self, batches_per_call: float | None) -> bool:
        """Settle the length by what the scheduler's calls count. Return True if that changes it.

        Args:
            batches_per_call: batches of the fixed run that a call stands for, below 1 where there are several a batch;
                None: it is made once an epoch.
        """
        total, before = self._total, self.epochs
        if total is None:
            return False
        if batches_per_call is None:
            whole = whole_epochs(total.steps, self._epoch_steps, self._per_step)
            if whole is not None and whole != total.steps:
                self._say(STEPPED_BY_THE_EPOCH, total, total.steps)
            self.epochs = total.steps
        else:
            self.epochs = self._by_batches(total, batches_per_call)
        self.is_open = False
        return self.epochs != before

    def _by_batches(self, total: Total, batches: float) -> float | None:
        """Epochs of a run whose scheduler is called after every `batches` batches of the fixed run."""
        calls, per_call = (total.steps, round(batches)) if batches >= 1 else (round(total.steps * batches), 1)
        whole = whole_epochs(calls, self._epoch_steps, per_call)
        if whole is not None:
            return whole
        if not total.of_the_run:
            self.may_be_cycles = True
            self._say(SHORTER_THAN_ITS_CYCLE, total)
            return None
        epochs, rest = divmod(calls * per_call, self._epoch_steps)
        return epochs + rest * self._start / self._epoch_samples

    def say(self, epochs: int) -> bool:
        """Let the user say the length. Return False if that contradicts what is known of it."""
        if self.epochs is None or self._means(epochs):
            self.epochs, self.is_open, self._total = epochs, False, None
            return True
        return self.epochs == epochs

    def _means(self, epochs: int) -> bool:
        """True if the scheduler's steps can be read as a run of `epochs` epochs."""
        if not self.is_open or self._total is None:
            return False
        readings = [self._total.steps, whole_epochs(self._total.steps, self._epoch_steps, self._per_step)]
        if self._total.of_the_run:
            readings.append(math.ceil(self._total.steps * self._per_step / self._epoch_steps))
        return epochs in readings

    def begin_epoch(self, samples: int) -> bool:
        """An epoch begins. Return True if that changes the length.

        Args:
            samples: samples of the run so far.
        """
        if self.epochs is None:
            return False
        if self._total is None:
            if samples >= round(self.epochs * self._epoch_samples):
                self._say_if_trained(GOES_ON_AS_SAID, self.epochs)
            return False
        if self.is_open:
            if self.holds and samples >= self._epoch_samples:
                self._say(NEVER_STEPPED, self._total)
        elif samples >= round(self.epochs * self._epoch_samples):
            if not self._warned:
                self._say_if_trained(GOES_ON, f"{self.epochs:g}", self._total)
            self.epochs = self._total = None
            return True
        return False

    def know_why(self) -> None:
        """Do not warn of a run that goes on for longer, because another warning says why."""
        self._is_longer = True

    def _say_if_trained(self, text: str, *values: object) -> None:
        """Warn of it, once, if the iteration that begins is more than a look at a batch."""
        if not self._is_longer:
            self._is_longer, self._unsaid = True, (text, *values)

    def trains(self) -> None:
        """The latest iteration trains, or is a whole pass: say what was put off."""
        if self._unsaid:
            text, *values = self._unsaid
            self._warn(text, *values)
            self._unsaid = ()

    def say_longer(self, text: str, *values: object) -> None:
        """Warn, once, of a run that goes on for longer than its length or its schedule."""
        if not self._is_longer:
            self._is_longer = True
            self._warn(text, *values)

    def _say(self, text: str, *values: object) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text, *values)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "is_open": self.is_open,
            "may_be_cycles": self.may_be_cycles,
            "by_scheduler": self._total is not None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what a saved run had come to know, unless the user has said another length."""
        if self._total is None and self.epochs is not None:
            return
        self.epochs = state["epochs"]
        if not state.get("by_scheduler", True):  # the saved run had been told its length, or had gone on beyond it
            self._total = None
        by_scheduler = self._total is not None
        self.is_open = state["is_open"] and by_scheduler
        self.may_be_cycles = state["may_be_cycles"] and by_scheduler
