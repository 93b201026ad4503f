"""Notices a loop that sets its learning rate from batch to batch by itself."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ..run import RATE, Holds

STEPPED = "_wrapped_by_lr_sched"  # torch's mark on the `step` of an optimizer that has a scheduler
BY_RULE = 3  # changes of the learning rate by hand that are no accident, each within `calm` of the one before

SCHEDULER = (
    "a scheduler is stepped from batch to batch that the loader was not given: as batches grow there are fewer of "
    "them, so it would not come to its end, and the batch is held. Make it first, from the length of a stock "
    "DataLoader, and give it as scheduler= (AdaptiveDataLoader.from_loader takes the DataLoader over)."
)
BY_HAND = (
    "the learning rate is set from batch to batch, and loader.progress is not asked for. A rate that is computed from "
    "the number of the batch would not come to its end, because larger batches are fewer, so the batch is held while "
    "it is set so. Compute it from loader.progress, which is 0..1 over the run, or give a scheduler as scheduler=."
)


class RateByHand:
    """Holds the batch while the learning rate is set by the number of the batch, and not by the samples.

    A scheduler that the loader was not given is known at its first change. Without a scheduler it takes three changes,
    each soon after the one before, and the batch is free again once the rate has stayed for a while, as after a warm-up
    by hand.

    Args:
        optimizer: the loop's optimizer.
        is_free: True if the rate need not follow the samples, as far as is known.
        calm: batches without a change after which the batch is free.
        holds: reasons to hold the batch.

    Attributes:
        is_free: the same, as far as is known by now.
        latest: the rate at the latest batch.
        changes: changes by hand in a row.
    """

    def __init__(self, optimizer: Optimizer, is_free: bool, calm: int, holds: Holds) -> None:
        self._optimizer, self._calm, self._holds = optimizer, calm, holds
        self.is_free, self.changes = is_free, 0
        self.latest: object = None
        self._since_change = 0  # batches
        self._held = self._warned = False

    def begin_epoch(self) -> None:
        """An iteration begins. What a loop does between two of them is its own affair."""
        self.latest = self._optimizer.param_groups[0]["lr"]

    def progress_was_read(self) -> bool:
        """The loop asks for the progress: a rate that it sets is taken to follow that. Return False at a scheduler."""
        if getattr(self._optimizer.step, STEPPED, False):
            return False
        self.is_free = False
        self._holds.remove(RATE)
        return True

    def look(self) -> None:
        """Look at the rate at another batch. Needed where `is_free` or `changes`."""
        lr = self._optimizer.param_groups[0]["lr"]
        # A scheduler sets a new number at each step, even an equal one; where it fills a tensor that is not seen.
        if self.is_free and lr is not self.latest:
            self._has_changed()
        elif self.changes:
            self._has_stayed()
        self.latest = lr

    def _has_changed(self) -> None:
        self.changes, self._since_change = self.changes + 1, 0
        by_scheduler = getattr(self._optimizer.step, STEPPED, False)
        if self._held or (self.changes < BY_RULE and not by_scheduler):
            return
        self._held = True
        self._holds.add(RATE)
        if not self._warned:
            self._warned = True
            self._holds.warn(SCHEDULER if by_scheduler else BY_HAND)

    def _has_stayed(self) -> None:
        self._since_change += 1
        if self._since_change >= self._calm:
            self.changes, self._held = 0, False
            self._holds.remove(RATE)

    def state_dict(self) -> dict[str, Any]:
        return {
            "_rate_is_free": self.is_free,
            "_changes": self.changes,
            "_since_change": self._since_change,
            "_held": self._held,
            "_warned": self._warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.is_free, self.changes = state["_rate_is_free"], state["_changes"]
        self._since_change, self._held, self._warned = state["_since_change"], state["_held"], state["_warned"]
