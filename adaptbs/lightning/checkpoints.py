"""Lets ModelCheckpoint(every_n_train_steps=) save at the steps of the stock run, though batches skip some of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .loop import LightningLoop
from .plan import last_multiple

HOOK = "on_train_batch_end"


class CheckpointsByStep:
    """Lets each such ModelCheckpoint save after a batch that reaches or skips a step at which the stock run saves.

    It saves at most once after a batch. The checkpoint has the name that the stock run gives it at that step.

    Args:
        loop: the Trainer's loop.

    Attributes:
        step_before: the global step before the latest batch.
    """

    def __init__(self, loop: LightningLoop) -> None:
        self._loop, self.step_before = loop, loop.global_step
        self._step_after = loop.global_step  # when the latest batch is done
        self._saved_ahead = 0  # in a save: steps that the batch has made beyond the one that is saved
        self._callbacks = [callback for callback, _ in loop.checkpoints_by_step()]
        for callback, every in loop.checkpoints_by_step():
            setattr(callback, HOOK, partial(self._batch_ended, getattr(callback, HOOK), every))

    def begin_batch(self) -> None:
        """Record the step before a batch."""
        self.step_before = self._step_after = self._loop.global_step

    def expect_step(self) -> None:
        """Record that Lightning will count a step more with this batch."""
        self._step_after = self._loop.global_step + 1

    def end_epoch(self) -> None:
        """Expect no step, as also where an epoch is broken off before it."""
        self._step_after = self._loop.global_step

    @property
    def ahead(self) -> int:
        """Number of steps by which the run is beyond the step that is being saved.

        An error may have ended a batch before its step. A fit that goes on begins with the batch after it, so its step
        counts as made.
        """
        return self._saved_ahead or max(self._step_after - self._loop.global_step, 0)

    def _batch_ended(self, hook: Callable[..., None], every: int, *args: Any, **kwargs: Any) -> None:
        now = self._loop.global_step
        step = last_multiple(every, self.step_before, now)
        if step is None:
            hook(*args, **kwargs)
            return
        self._saved_ahead = now - step
        try:
            with self._loop.at_step(step):
                hook(*args, **kwargs)
        finally:
            self._saved_ahead = 0

    def leave(self) -> None:
        """Give the callbacks their own hook back."""
        for callback in self._callbacks:
            vars(callback).pop(HOOK, None)
