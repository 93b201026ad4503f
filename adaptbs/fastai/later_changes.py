"""Notices another callback that changes a batch after AdaptiveBatchSize has measured it."""

from __future__ import annotations

from typing import Any

from ..run import Holds

CHANGED = "another callback changes the batch"  # reason to hold the batch

WARNING = (
    "%s, so the noise scale is measured on other data than is trained on, and the batch is held. Give the callback "
    "that sets learn.xb or learn.yb an order below %d, or let it do so in a transform of the DataLoaders (after_batch)."
)


class LaterChanges:
    """Compares the batch that is measured by halves with the batch that the step is made from.

    If the step itself is measured, there is nothing to compare.

    Args:
        learn: the Learner.
        holds: reasons to hold the batch of its run.
        order: order of the callback that measures.
    """

    def __init__(self, learn: Any, holds: Holds, order: int) -> None:
        self._learn, self._holds, self._order = learn, holds, order
        self._measured: tuple[Any, Any] | None = None
        self._said = False
        holds.remove(CHANGED)  # a resumed run may have other callbacks

    def measured(self) -> None:
        """Keep the batch as it is now, when it is measured."""
        self._measured = self._learn.xb, self._learn.yb

    def check(self) -> None:
        """Hold the batch if the step that comes is made from other data."""
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
        """True if the two are the same object, or hold the same tensors."""
        return before is now or (len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True)))
