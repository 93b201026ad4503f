"""Counts the batches of a pass: those that have been cut, and those left at the present size."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .batch_info import BatchInfo

if TYPE_CHECKING:
    from typing_extensions import Self


class Sizes(Protocol):
    """The part of a batch sampler that says how long its batches are; see AdaptiveBatchSampler."""

    size: Callable[[], int]
    first: int
    batches_per_step: int

    @property
    def pass_samples(self) -> int: ...

    @property
    def shortest_tail(self) -> int: ...

    def fitting(self, size: int, left: int) -> int: ...


class CountsBatches:
    """Counts the batches of a pass.

    Attributes:
        count: number of batches that have been cut.
        issued: the batches that have been cut and not been begun, oldest first.
    """

    count: int
    issued: deque[BatchInfo]
    _sampler: Sizes
    _is_drawn: bool
    _left: int
    _cut_size: int
    _batch: int

    @property
    def length(self) -> int:
        """Batches of this pass if the size stays the same. A resumed pass counts only those that were left."""
        return self.begun + self.left[0]

    @property
    def begun(self) -> int:
        """Batches that the loop has begun."""
        return self.count - len(self.issued)

    @property
    def left(self) -> tuple[int, int]:
        """Batches of this pass that the loop has not begun, at the present size, and their samples."""
        return len(self.issued) + self._to_cut, self.samples_left

    @property
    def samples_left(self) -> int:
        """Samples of this pass that the loop has not begun."""
        if not self._is_drawn:
            return self._sampler.pass_samples
        return sum(issued.num_samples for issued in self.issued) + self._left

    @property
    def _to_cut(self) -> int:
        """Number of batches left to be cut. A copy of this cuts the last few. All others have the same size."""
        twin, sampler, found = self._copied(), self._sampler, 0
        size, shortest_tail = sampler.size(), sampler.shortest_tail
        while twin._left:
            if not twin._batch:
                found += twin._skip(sampler.fitting(size, twin._left)) * sampler.batches_per_step
            length = twin._length(shortest_tail)
            if not length:
                break
            twin._advance(length)
            found += 1
        return found

    def _copied(self) -> Self:
        """A copy to cut instead of this. It has all samples where none are drawn yet."""
        twin = copy.copy(self)
        twin._left = self._left if self._is_drawn else self._sampler.pass_samples
        return twin

    def _skip(self, size: int) -> int:
        """Skip the whole steps of this size that are far from the end, and begin one. Return the number skipped."""
        far = self._left - 4 * max(size, self._sampler.first * self._sampler.batches_per_step)
        steps = max(far // size, 0)
        self._left, self._cut_size = self._left - steps * size, size
        return steps

    def _advance(self, length: int) -> None:
        self._left -= length
        self._batch = (self._batch + 1) % self._sampler.batches_per_step

    def _length(self, shortest_tail: int) -> int:
        """Samples of the next batch, over all ranks."""
        raise NotImplementedError
