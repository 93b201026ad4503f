"""Tells rows that are not samples from a few samples that a loop leaves out."""

from __future__ import annotations

from collections import deque

NEAR = 0.1  # share of samples that a loop may leave out; the noise scale moves less than its interval is wide
FEW = 4  # samples; of so many or more one row may be missing, as of an image that cannot be read
LATEST = 6  # measurements that are judged together


def is_far(rows: int, samples: int) -> bool:
    """True if the noise scale of rows is another number than that of samples, not only off by a few rows.

    >>> is_far(16, 8), is_far(1, 2), is_far(7, 8), is_far(90, 100)
    (True, True, False, False)
    """
    return abs(rows - samples) > NEAR * samples + min(1, samples / FEW)


class RowsSeen:
    """Judges measured steps by the latest of them together.

    A `collate_fn` that leaves out what cannot be read takes several samples of one batch now and then, and none of
    most others. Two views of each sample are in every batch.
    """

    def __init__(self) -> None:
        self._latest: deque[tuple[int, int]] = deque(maxlen=LATEST)

    def are_wrong(self, rows: int, samples: int) -> bool:
        """Take in the rows and samples of a measurement. True if the noise scale is not that of samples."""
        self._latest.append((rows, samples))
        rows_in_all, samples_in_all = (sum(numbers) for numbers in zip(*self._latest, strict=True))
        return rows != samples and is_far(rows_in_all, samples_in_all)

    def state_dict(self) -> list[list[int]]:
        """Rows and samples of the latest measurements."""
        return [list(each) for each in self._latest]

    def load_state_dict(self, state: list[list[int]]) -> None:
        """Go on with saved measurements."""
        self._latest = deque(((rows, samples) for rows, samples in state), maxlen=LATEST)
