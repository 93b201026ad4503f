"""Lightning's loop: reads its counts, and sets them so that it counts as without adaptbs.

All private names of Lightning that adaptbs relies on are in this file, in `validations.py` and in `refusals.py`; tried
with lightning 2.6.6 (as `lightning` and as `pytorch_lightning`):

    trainer.fit_loop._combined_loader (._flattened)                        the loader that is iterated, and ...
    trainer.fit_loop._data_fetcher (.length, .done)                        ... its end
    trainer.fit_loop.is_resuming, .epoch_loop.restarting                   whether a fit goes on with a checkpoint, ...
    trainer.fit_loop.restarted_on_epoch_end, .restarted_on_epoch_start,    ... and from where
        .reset_restart_stage, ._restarting, .epoch_progress
    trainer.fit_loop.max_batches, .epoch_loop.batch_progress               batches of an epoch, and their number
    trainer.fit_loop.epoch_loop._batches_that_stepped                      the step that is logged
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress      the count behind trainer.global_step,
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress    and the same in manual optimization
    ModelCheckpoint._every_n_train_steps                                   when it saves
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .plan import last_multiple


class LightningLoop:
    """The training loop of a Trainer.

    Args:
        trainer: fits a model; its train loader has been set up.

    Attributes:
        validation_waits: True if a validation is to come after the next optimizer step.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._fit_loop, self._epoch_loop = trainer, trainer.fit_loop, trainer.fit_loop.epoch_loop
        self._validate_every, self._log_every = trainer.val_check_batch, trainer.log_every_n_steps
        self._automatic = trainer.lightning_module.automatic_optimization
        self._estimated_steps = trainer.estimated_stepping_batches  # by `max_batches`, which `expect` will change
        self.validation_waits = False
        self._validated_when_left: bool | None = None

    @property
    def stock_loaders(self) -> list[Any]:
        """The loaders that the Trainer was given."""
        return list(self._fit_loop._combined_loader.flattened)

    @property
    def stock_batches(self) -> float:
        """Batches of an epoch of the stock loader, at most `limit_train_batches`; inf where that is not known."""
        return float(self._fit_loop.max_batches)

    @property
    def iterates_again(self) -> bool:
        """True if the loop iterates its loader a second time before the fit's first batch.

        It does so where a Trainer that has been fitted goes on with more epochs.
        """
        return bool(self._trainer.current_epoch and not self._fit_loop.is_resuming and not self._epoch_loop.restarting)

    def iterate(self, loader: Any, shown: Any) -> None:
        """Iterate this loader from here on. `trainer.train_dataloader` is `shown`."""
        combined, fetcher = self._fit_loop._combined_loader, self._fit_loop._data_fetcher
        combined.reset()  # ends the stock loader's workers
        combined.flattened = [shown]
        combined._flattened = [loader]
        combined.limits = None
        # A property cannot be set in an object, and a class that is changed would change other Trainers.
        stock = type(self._trainer)
        self._trainer.__class__ = type(
            stock.__name__, (stock,),
            {"estimated_stepping_batches": self._estimated_steps, "__module__": stock.__module__, "_stock": stock},
        )  # fmt: skip
        fetcher.setup(combined)
        iter(fetcher)

    @property
    def global_step(self) -> int:
        """Optimizer steps, counted as the stock run would."""
        return int(self._trainer.global_step)

    @property
    def batches_so_far(self) -> int:
        """Batches of all epochs so far."""
        return int(self._epoch_loop.batch_progress.total.ready)

    @property
    def batches_behind(self) -> int:
        """Batches of the epoch under way that were trained on before the fit, where it goes on within an epoch."""
        trained = int(self._epoch_loop.batch_progress.current.ready) if self._epoch_loop.restarting else 0
        return trained if trained < self._fit_loop.max_batches else 0

    @property
    def batch_number(self) -> int:
        """Number of the batch being fetched, from 1."""
        return int(self._epoch_loop.batch_progress.current.ready) + 1

    def begin_epoch_of_checkpoint(self) -> None:
        """Let a fit that was saved between two epochs begin with the next one.

        Lightning trains one more batch of the epoch before, where it goes by max_steps, or where an error came from a
        hook at an epoch's start. That is right only where max_steps had ended that epoch before its last batch.
        """
        if self._fit_loop.restarted_on_epoch_start:
            self._epoch_loop.restarting = False
        if self._fit_loop.restarted_on_epoch_end and self._epoch_loop.batch_progress.is_last_batch:
            self._fit_loop.epoch_progress.increment_completed()
            self._fit_loop.reset_restart_stage()
            self._fit_loop._restarting = False  # its setter leaves it at True
            self._epoch_loop.restarting = False

    def resume(self, *, under_way: bool, validates: bool, waits: bool) -> None:
        """Resume in the epoch in which a checkpoint was saved.

        Args:
            under_way: False if all of its batches had been trained on.
            validates: True if a validation was due after the latest of them.
            waits: True if a validation was to come after the next optimizer step.
        """
        # Lightning warns of a loader that it takes to begin its epoch anew, unless the number of batches is not known
        # or makes one step. An epoch is over for it if no batches of this number are left.
        one_step = min(self._epoch_loop.batch_progress.current.ready, self._trainer.accumulate_grad_batches)
        self._fit_loop.max_batches = math.inf if under_way else one_step
        self.validation_waits = waits
        if self._counts_validations:
            number = self._latest_number
            self._trainer.val_check_batch = number if validates and number else number + 1

    def expect(self, left: int, *, ends_epoch: bool, beyond: int) -> bool:
        """Say what comes after the batch being fetched. Return True if the loop makes an optimizer step with it.

        Args:
            left: batches that are delivered after it.
            ends_epoch: True if the stock run's epoch ends with it.
            beyond: batches of the epoch that the run ends before.
        """
        number, fetcher = self.batch_number, self._fit_loop._data_fetcher
        fetcher.length, fetcher.done = None, ends_epoch
        if self._fit_loop.max_batches != number + left + beyond:
            self._fit_loop.max_batches = number + left + beyond
        show_total(self._trainer.progress_bar_callback, number + left)
        return ends_epoch or number % self._trainer.accumulate_grad_batches == 0

    def count_steps(self, steps: int) -> None:
        """Count `steps` optimizer steps in addition to the one that the loop counts itself."""
        if steps:
            optimization = self._epoch_loop.automatic_optimization.optim_progress.optimizer.step
            counted = optimization if self._automatic else self._epoch_loop.manual_optimization.optim_step_progress
            counted.total.ready += steps
            counted.total.completed += steps

    def count_logged(self, steps: int) -> None:
        """Count `steps` steps besides the one that the loop logs next. It logs if one of them is to be logged."""
        before = self._epoch_loop._batches_that_stepped
        if steps:
            self._epoch_loop._batches_that_stepped += steps
        if self._log_every > 1:
            now = self._epoch_loop._batches_that_stepped + 1
            logs = last_multiple(self._log_every, before, now) is not None
            self._trainer.log_every_n_steps = 1 if logs else now + 1

    def log_as_given(self) -> None:
        """Log as often as the Trainer was told. Batches of a validation are logged by their own count."""
        self._trainer.log_every_n_steps = self._log_every

    def validate(self, before: int, after: int, *, run_before: int, makes_step: bool) -> None:
        """Validate after the batch being fetched, if the stock run validates after a batch for which it stands.

        If the stock run validates right after an optimizer step, this one waits for its next optimizer step.

        Args:
            before, after: the stock run's batches of the epoch before and after it.
            run_before: the stock run's batches of the whole run before it.
            makes_step: True if the loop makes an optimizer step with it.
        """
        if not self._counts_validations:
            return
        # Validations may be counted over the run. Steps are counted within the epoch, at whose end a short one is made.
        earlier = run_before - before if self._validates_by_run else 0
        number, place = self._latest_number + 1, last_multiple(self._validate_every, earlier + before, earlier + after)
        if place is not None and not makes_step and (place - earlier) % self._trainer.accumulate_grad_batches == 0:
            self.validation_waits, place = True, None
        is_due = place is not None or (makes_step and self.validation_waits)
        self.validation_waits = self.validation_waits and not makes_step
        self._trainer.val_check_batch = number if is_due else number + 1

    @property
    def _validates_by_run(self) -> bool:
        """True if validations are counted over the run, and not anew in each epoch."""
        return self._trainer.check_val_every_n_epoch is None

    @property
    def validates_now(self) -> bool:
        """True if the loop validates after the latest batch, by its number."""
        if self._validated_when_left is not None:
            return self._validated_when_left
        return bool(self._trainer.val_check_batch == self._latest_number)

    @property
    def _counts_validations(self) -> bool:
        """False if the loop validates by the clock, or only at the end of an epoch of unknown length."""
        return self._validate_every is not None and self._validate_every != math.inf

    @property
    def _latest_number(self) -> int:
        """Number of the latest batch, from 1, by which the loop decides whether to validate."""
        progress = self._epoch_loop.batch_progress
        return int((progress.total if self._validates_by_run else progress.current).ready)

    def checkpoints_by_step(self) -> list[tuple[Any, int]]:
        """The ModelCheckpoints that save by steps, with how many steps."""
        each = ((callback, getattr(callback, "_every_n_train_steps", 0)) for callback in self._trainer.callbacks)
        return [(callback, every) for callback, every in each if every and every > 1]

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """A context in which the global step is `step`."""
        ahead = self.global_step - step
        self.count_steps(-ahead)
        try:
            yield
        finally:
            self.count_steps(ahead)

    def leave(self) -> None:
        """Give the Trainer its own settings back."""
        self._validated_when_left = self.validates_now
        self.log_as_given()
        self._trainer.val_check_batch = self._validate_every
        self._trainer.__class__ = getattr(type(self._trainer), "_stock", type(self._trainer))


def show_total(bar: Any, batches: int) -> None:
    """Let Lightning's TQDMProgressBar or RichProgressBar show that an epoch has `batches` batches."""
    line = getattr(bar, "train_progress_bar", None)
    if line is not None and line.total != batches:
        line.total = batches
    shown, task = getattr(bar, "progress", None), getattr(bar, "train_progress_bar_id", None)
    if shown is not None and task is not None:
        shown.update(task, total=batches)
