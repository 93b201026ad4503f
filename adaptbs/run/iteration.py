"""The batches of one iteration over a loader, from fetched to finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..sampling import BatchInfo
from .look_ahead import LookAhead

ONE_AT_A_TIME = "persistent workers serve one iteration at a time: end it before the next"


class Iteration:
    """One iteration over a loader: it counts the batches that the loop has fetched, begun and finished.

    Args:
        look_ahead: how the loop takes its batches.
        queue: the sizes that the batches were cut at, oldest first. A batch leaves it when the loop comes to work on
            it.
        epoch: number of the epoch, from 0.
        position: samples of the epoch that the loop has come to work on.
    """

    def __init__(self, look_ahead: LookAhead, queue: deque[BatchInfo], epoch: int, position: int) -> None:
        self.look_ahead, self.queue, self.epoch, self.position = look_ahead, queue, epoch, position
        self.fetched = self.begun = self.finished = 0

    def fetch(self) -> BatchInfo:
        """The loop is given a batch: count it, and return its size."""
        self.look_ahead.fetched()
        waiting = self.fetched - self.begun
        self.fetched += 1
        if len(self.queue) <= waiting:
            raise RuntimeError(ONE_AT_A_TIME)
        return self.queue[waiting]

    def next(self) -> BatchInfo:
        """The loop begins to work on the next batch: take its size out of the queue, and return it."""
        if not self.queue:
            raise RuntimeError(ONE_AT_A_TIME)
        info = self.queue.popleft()
        self.position += info[1]  # its samples
        return info

    def advance(
        self, begin: Callable[[Iteration], None], finish: Callable[[], None], *, begun: int = 0, finished: int = 0
    ) -> None:
        """Begin and finish batches, in turn, until the loop has begun `begun` and finished `finished` of them.

        Of batches that are only looked at no step is finished: they would be timed as quick ones.
        """
        while self.begun < max(begun, finished) or self.finished < finished:
            if self.finished < self.begun:
                if not self.look_ahead.is_idle:
                    finish()
                self.finished += 1
            else:
                begin(self)
                self.begun += 1
