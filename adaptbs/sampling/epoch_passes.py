"""The passes over the data that the batches of one epoch come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

from .batch_info import BatchInfo
from .pass_cut import PassCut


class EpochPasses:
    """The passes of one epoch: the rest of one that an earlier epoch began, and those begun in this one.

    Args:
        cut: the pass that the epoch begins with.
        fetched: a DataLoader's iteration over it.
        is_known: True if the first batch that comes has been fetched before.

    Attributes:
        cut: the pass under way.
        fetched: its iteration.
    """

    def __init__(self, cut: PassCut, fetched: Iterator[Any], is_known: bool = False) -> None:
        self.cut, self.fetched = cut, fetched
        self._before = -cut.begun  # batches begun in earlier passes of the epoch, less those of earlier epochs
        self._is_known = is_known

    @property
    def queue(self) -> deque[BatchInfo]:
        """The batches that the loop has not begun, oldest first; all passes of the epoch share it."""
        return self.cut.queue

    @property
    def begun(self) -> int:
        """Batches of this epoch that the loop has come to work on."""
        return self._before + self.cut.begun

    @property
    def length(self) -> int:
        """Batches of the epoch if it ends with the pass under way and the size stays as it is now."""
        return self.begun + self.cut.left[0]

    def for_the_next_epoch(self) -> EpochPasses:
        """The same pass and iteration, as the beginning of another epoch."""
        return EpochPasses(self.cut, self.fetched, self._is_known)

    def end_pass(self) -> PassCut:
        """Take note that the pass under way has come to its end, within the epoch. Return it."""
        self._before += self.cut.begun
        self.close()
        return self.cut

    def go_on_with(self, cut: PassCut, fetched: Iterator[Any]) -> None:
        """Go on with another pass, made after the one that `end_pass` has returned."""
        self.cut, self.fetched = cut, fetched

    def is_new(self, batch: Any) -> bool:
        """Tell whether a fetched batch is to be delivered; see PassCut."""
        known, self._is_known = self._is_known, False
        return known or self.cut.is_new is None or self.cut.is_new(batch)

    def left_over(self) -> bool:
        """Return True if the pass under way goes on after the epoch. One that is at its end comes to it here."""
        if not self.cut.is_at_its_end:
            return True
        # A stock loader, too, is asked for one more batch than it has: RandomSampler draws then.
        for batch in self.fetched:
            if self.is_new(batch):  # of a stream that is longer than was assumed
                self.fetched, self._is_known = chain([batch], self.fetched), True
                return True
        return False

    def close(self) -> None:
        """Fetch no more. The pass can be gone on with by another iteration over it."""
        self.fetched = iter(())
