"""Notices another callback that changes a batch after AdaptiveBatchSize has measured it."""

from __future__ import annotations

from typing import Any

from ..run import Holds

CHANGED = "another callback changes the batch"  # reason to hold it

WARNING = (
    "%s, so the noise scale is measured on other data than is trained on, and the batch is held. Give the callback "
    "that sets learn.xb or learn.yb an order below %d, or let it do so in a transform of the DataLoaders (after_batch)."
)


class LaterChanges:
    """Compares the batch that is measured with the one that the step is made of.

    Not needed where steps themselves are measured, which are made of what they are made of.

    Args:
        learn: the Learner.
        holds: of its run.
        order: of the callback that measures.
    """

    def __init__(self, learn: Any, holds: Holds, order: int) -> None:
        self._learn, self._holds, self._order = learn, holds, order
        self._measured: tuple[Any, Any] | None = None
        self._said = False
        holds.remove(CHANGED)  # of a resumed run, whose callbacks may be others

    def measured(self) -> None:
        """Take note of the batch, which is as it is measured."""
        self._measured = self._learn.xb, self._learn.yb

    def check(self) -> None:
        """Hold the batch if the step, which comes, is made of another."""
        before, self._measured = self._measured, None
        if before is None:
            return
        if self._same(before[0], self._learn.xb) and self._same(before[1], self._learn.yb):
            return
        self._holds.add(CHANGED)
        if not self._said:
            self._said = True
            self._holds.warn(WARNING, CHANGED, self._order)

    @staticmethod
    def _same(before: Any, now: Any) -> bool:
        """True if it is the same, or made anew of the same tensors."""
        return before is now or (len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True)))
