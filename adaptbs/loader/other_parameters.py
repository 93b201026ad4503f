"""Notices parameters of the model that something else than the loader's optimizer trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

BY_RULE = 3  # batches at which they had been changed that are no accident


class OtherParameters:
    """Counts the batches at which parameters that are not the optimizer's had been changed.

    Args:
        find: returns parameters of the model that train and are not the optimizer's, a few of them.

    Attributes:
        watched: those that are watched in this iteration; empty once it is known that they are changed.
        moved: batches at which they had been changed.
    """

    def __init__(self, find: Callable[[], Sequence[Tensor]]) -> None:
        self._find, self.moved, self._version = find, 0, 0
        self.watched: Sequence[Tensor] = ()

    @property
    def are_trained(self) -> bool:
        """True once they have been changed at so many batches that it is no accident."""
        return self.moved >= BY_RULE

    def begin_epoch(self) -> bool:
        """An iteration begins. Return True if the model has such parameters."""
        found = self._find()
        if not found:  # now the optimizer has all
            self.moved = 0
        self.watched = () if self.are_trained else found
        self._version = sum(p._version for p in self.watched)
        return bool(found)

    def look(self) -> bool:
        """Look at another batch. Return True if this has shown that they are trained."""
        version = sum(p._version for p in self.watched)
        self.moved += version != self._version
        self._version = version
        if self.are_trained:
            self.watched = ()
        return self.are_trained

    def load(self, moved: int) -> None:
        """Go on from a saved run's number of batches."""
        self.moved = moved
