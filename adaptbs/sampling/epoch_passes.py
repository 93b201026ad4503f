"""The passes over the data that the batches of one epoch come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from .batch_info import BatchInfo
from .pass_cut import PassCut


class EpochPasses:
    """The passes of one epoch: the rest of a pass that an earlier epoch began, and the passes begun in this one.

    Args:
        cut: the pass that the epoch begins with.
        fetched: a DataLoader's iteration over the pass.
        is_known: True if the next batch of `fetched` was matched with its request before.
        is_rest: True if the pass was begun before the epoch.

    Attributes:
        cut: the current pass.
        fetched: the iteration over it.
        passes_begun: passes that were begun in the epoch.
    """

    def __init__(self, cut: PassCut, fetched: Iterator[Any], is_known: bool = False, *, is_rest: bool = False) -> None:
        self.cut, self.fetched, self.passes_begun = cut, fetched, int(not is_rest)
        self._rest = cut if is_rest else None  # the pass that was begun before
        self._begun_of_rest = 0  # batches of it that the loop has begun in this epoch, once it is over
        self._before = -cut.begun  # batches begun in earlier passes of the epoch, minus those begun in earlier epochs
        self._is_known = is_known

    @property
    def queue(self) -> deque[BatchInfo]:
        """The batches that the loop has not begun, oldest first. All passes of the epoch share the queue."""
        return self.cut.queue

    @property
    def begun(self) -> int:
        """Batches of this epoch that the loop has begun."""
        return self._before + self.cut.begun

    @property
    def length(self) -> int:
        """Batches of the epoch if it ends with the current pass and the size stays the same."""
        return self.begun + self.cut.left[0]

    @property
    def is_rest(self) -> bool:
        """True while the current pass is one that was begun before the epoch."""
        return self._rest is self.cut

    @property
    def began_with_a_rest(self) -> bool:
        """True if the epoch began with the rest of a pass."""
        return self._rest is not None

    def for_the_next_epoch(self) -> EpochPasses:
        """An epoch that begins with the rest of this one's current pass, and with the same iteration."""
        return EpochPasses(self.cut, self.fetched, self._is_known, is_rest=True)

    def end_pass(self) -> PassCut:
        """End the current pass within the epoch. Return it."""
        if self.is_rest:
            self._begun_of_rest = self.begun
        self._before += self.cut.begun
        self.close()
        return self.cut

    def go_on_with(self, cut: PassCut, fetched: Iterator[Any]) -> None:
        """Continue with another pass, made after the one that `end_pass` has returned."""
        self.cut, self.fetched = cut, fetched
        self.passes_begun += 1

    def take_back(self, looked_at: Sequence[BatchInfo]) -> bool:
        """Let the loop have begun nothing in this epoch. Return True if it began with the rest of a pass.

        Args:
            looked_at: the batches of that rest that were fetched, oldest first.
        """
        rest = self._rest
        if rest is None:
            return False
        begun = self.begun if self.is_rest else self._begun_of_rest
        if not self.is_rest:
            rest.queue.clear()  # of batches of the passes that came after it
        rest.queue.extendleft(reversed(looked_at[:begun]))
        self.cut, self._before = rest, -rest.begun
        return True

    def is_new(self, batch: Any) -> bool:
        """Match a fetched batch with its request. True if it is to be delivered; see PassCut."""
        known, self._is_known = self._is_known, False
        return known or self.cut.is_new is None or self.cut.is_new(batch)

    def left_over(self) -> bool:
        """True if the current pass goes on after the epoch. Otherwise its iteration is run to its end."""
        if not self.cut.is_at_its_end:
            return True
        # A stock loader, too, is asked for one more batch than it has: RandomSampler draws then.
        for batch in self.fetched:
            if self.is_new(batch):  # the stream is longer than assumed
                self.fetched, self._is_known = chain([batch], self.fetched), True
                return True
        return False

    def close(self) -> None:
        """Fetch no more batches. Another iteration over the pass can continue it."""
        self.fetched = iter(())
