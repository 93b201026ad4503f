"""Recognises from its readings that the user's loop resets a peak statistic."""

from __future__ import annotations

from .search import Trial


class PeakReadings:
    """Peaks of memory that a device's statistics showed at each batch size of a run.

    A peak never falls unless it is reset. A peak that this run has made rises with the batch, unless a reset has hidden
    the steps that made it. A peak that stays where the run found it belongs to an earlier run. It is too high rather
    than too low.

    Args:
        at_start: the peak before the run's first step, bytes.

    Attributes:
        were_reset: True once a reading shows that the peak was reset.
    """

    def __init__(self, at_start: int) -> None:
        self._at_start = self._highest = at_start
        self._took: dict[int, int] = {}  # bytes that the batch took, by the largest size that had run
        self.were_reset = False

    def add(self, read: Trial) -> None:
        """Add the peak that was read when `read.batch_size` was the largest size that had run."""
        if read.peak is None:
            return
        took, of_this_run = read.peak - read.rest, read.peak > self._at_start
        smaller = [seen for size, seen in self._took.items() if size < read.batch_size]
        fell = read.peak < self._highest or took <= 0
        self.were_reset |= fell or (of_this_run and bool(smaller) and took <= max(smaller))
        self._highest = max(self._highest, read.peak)
        if of_this_run:
            self._took[read.batch_size] = max(took, self._took.get(read.batch_size, 0))
