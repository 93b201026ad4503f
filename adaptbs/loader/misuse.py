"""Warns, once, of a loop that leaves its scheduler or its optimizer's steps out of what follows the batch."""

from __future__ import annotations

import logging

from torch.optim import Optimizer

log = logging.getLogger(__name__)

STEPPED = "_wrapped_by_lr_sched"  # torch's mark on the `step` of an optimizer that has a scheduler
PATIENCE = 16  # optimizer steps' worth of batches of another size; a GradScaler may leave the first steps out


class MisuseWarnings:
    """Watches what should follow the batch and does not.

    Args:
        optimizer: the loop's optimizer.
        scheduler_given: whether the loader drives a scheduler.
        follows: whether any hyperparameter is to follow the batch.
        batches_per_step: batches of an optimizer step.

    Attributes:
        saw_a_step: whether the optimizer has taken a step, or is not waited for any more.
        watches: whether there is anything left to warn of.
    """

    def __init__(self, optimizer: Optimizer, *, scheduler_given: bool, follows: bool, batches_per_step: int) -> None:
        self._optimizer, self._scheduler_missing = optimizer, not scheduler_given
        self._patience = PATIENCE * batches_per_step
        self.saw_a_step = not follows
        self.watches = not scheduler_given or follows
        self._lr: object = None

    def stepped(self) -> None:
        """Take note of a step of the optimizer."""
        self.saw_a_step = True
        self.watches = self._scheduler_missing

    def begin_epoch(self) -> None:
        """Take note of an iteration that begins: what a loop does between two of them is its own affair."""
        self._lr = self._optimizer.param_groups[0]["lr"]

    def look(self) -> None:
        """Look at what the loop has done since the latest batch, of a run whose batch has changed."""
        lr = self._optimizer.param_groups[0]["lr"]
        # A scheduler sets a new number at each step, even an equal one; where it fills a tensor that is not seen.
        if self._scheduler_missing and lr is not self._lr and getattr(self._optimizer.step, STEPPED, False):
            self._scheduler_missing, self.watches = False, not self.saw_a_step
            log.warning(
                "a scheduler is stepped from batch to batch that the loader was not given: as batches grow there are "
                "fewer of them, so it will not come to its end. Make it first, from the length of a stock DataLoader, "
                "and give it as scheduler= (AdaptiveDataLoader.from_loader takes the DataLoader over)."
            )
        self._lr = lr
        if not self.saw_a_step:
            self._patience -= 1
            if not self._patience:
                self.stepped()
                log.warning(
                    "batches of another size are delivered, but step() of the %s that the loader was given is never "
                    "called, so no hyperparameter follows them: give optimizer= the one whose step() is called "
                    "(SAM's base_optimizer, say), or transfer=() if that is meant.",
                    type(self._optimizer).__name__,
                )
