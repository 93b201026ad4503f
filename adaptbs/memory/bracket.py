"""The sizes that memory has held and those at which it ran out, and the size to try between them."""

from __future__ import annotations

import math
from typing import Any

FURTHER = 3  # number of failures after the first, after which the search for the largest size ends
LIKED, FROM = 8, 16  # from 16 samples on, devices compute multiples of 8 in less time


class Bracket:
    """Brackets the largest size that memory holds, and halves the gap.

    The lower end is the largest size that has run or that a trial has found to fit. The upper end is the smallest size
    that ran out. After `FURTHER` more failures the search ends, and the lower end is the largest size allowed.

    Attributes:
        largest_run: the largest size that the run has run, samples.
        largest_tried: the largest size that a trial has found to fit, samples.
        smallest_failed: the smallest size that memory ran out at, samples; None before the first.
        failures: number of batches and trials that memory ran out in.
    """

    def __init__(self) -> None:
        self.largest_run = self.largest_tried = self.failures = 0
        self.smallest_failed: int | None = None

    @property
    def largest_held(self) -> int:
        """The largest size that has run or that a trial has found to fit, samples."""
        return max(self.largest_run, self.largest_tried)

    @property
    def largest_allowed(self) -> float:
        """The largest size that may be run or tried next, samples; inf if none has failed."""
        if self.smallest_failed is None:
            return math.inf
        return self.largest_held if self.failures > FURTHER else halfway(self.largest_held, self.smallest_failed)

    @property
    def failures_left(self) -> int:
        """Number of further trials that may fail before the search ends; at least one."""
        return max(1 + FURTHER - self.failures, 1)

    def ran(self, size: int) -> None:
        """Record a size that has run, samples."""
        if self.smallest_failed is None or size < self.smallest_failed:
            self.largest_run = max(size, self.largest_run)

    def fits(self, size: int) -> None:
        """Record a size that a trial has found to fit, samples."""
        self.largest_tried = max(size, self.largest_tried)

    def fails(self, size: int, *, again: bool = False) -> None:
        """Record a size at which memory ran out.

        Args:
            size: samples.
            again: True if a larger piece of the same batch has failed before. It counts as the same failure.
        """
        self.smallest_failed = size if self.smallest_failed is None else min(size, self.smallest_failed)
        self.failures += not again
        # If a size that ran fails now, less memory is free than then. How much less is not known.
        self.largest_run = self.largest_run if self.largest_run < size else 0
        self.largest_tried = self.largest_tried if self.largest_tried < size else 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name])


def halfway(held: int, failed: int) -> int:
    """A size halfway between one that memory holds and one that it does not. `held` if no size between them is liked.

    From FROM samples on, the liked sizes are the multiples of LIKED.

    >>> halfway(128, 256), halfway(128, 144), halfway(128, 136), halfway(8, 12)
    (192, 136, 128, 10)
    """
    middle = (held + failed) // 2
    if middle < FROM:
        return middle
    below = middle - middle % LIKED
    return next((size for size in (below, below + LIKED) if held < size < failed), held)
