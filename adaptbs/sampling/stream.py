"""An IterableDataset's batches: sizes are asked for, and what comes back says how many there were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from .batch_sampler import AdaptiveBatchSampler, BatchInfo, EpochCut

T = TypeVar("T")


class StreamSampler(AdaptiveBatchSampler):
    """Asks for batches without end; the dataset, or its last worker, ends the epoch.

    Its `sampler` only says how long an epoch is taken to be, for pace and schedule.
    """

    def _new_cut(self) -> StreamEpochCut:
        return StreamEpochCut(self)


class StreamEpochCut(EpochCut):
    """One epoch of a stream.

    A worker that has come to its end leaves the batches unanswered that it was asked for: they are not in `delivered`.

    Attributes:
        asked: all that was asked for in this epoch, to ask for the same again when the run is resumed.
        delivered: what was cut, for each batch that has come and that the loop has not begun.
    """

    def __init__(self, sampler: StreamSampler) -> None:
        super().__init__(sampler)
        self.asked: list[BatchInfo] = []
        self.delivered: deque[BatchInfo] = deque()
        self._came = 0  # batches
        self._to_skip = self._rest["begun"] if self._rest else 0

    def batches(self) -> Iterator[list[int]]:
        """As many numbers as samples are asked for; what they are matters to nobody."""
        for nominal, length, ends_step in self._rest["asked"] if self._rest else ():
            yield self._ask(BatchInfo(nominal, length, ends_step))
        parts = self._sampler.parts
        self._part = len(self.asked) % parts
        self._nominal = self.asked[-1].nominal if self.asked else 0
        while True:
            if not self._part:
                self._nominal = self._sampler.size()
            self._part = (self._part + 1) % parts
            yield self._ask(BatchInfo(self._nominal, self._nominal // parts, not self._part))

    def _ask(self, issued: BatchInfo) -> list[int]:
        self.asked.append(issued)
        self.issued.append(issued)
        return [0] * issued.length

    def matched(self, batches: Iterable[T], rows: Callable[[T], int | None]) -> Iterator[T]:
        """The batches that have not been delivered before the run was resumed, each matched with what was asked for."""
        for batch in batches:
            issued = self._answered(rows(batch))
            self._came += 1
            if self._came > self._to_skip:
                self.delivered.append(issued)
                yield batch

    def _answered(self, held: int | None) -> BatchInfo:
        """What was asked for where a batch of so many samples came; None if that is not known."""
        if held is None or held > max(issued.length for issued in self.issued):  # (a collate that makes more of them)
            return self.issued.popleft()
        while self.issued[0].length < held:  # an exhausted worker's
            self.issued.popleft()
        return self.issued.popleft()._replace(length=held)

    def state_dict(self) -> dict[str, Any]:
        """What was asked for in this epoch, and how many batches of it the loop has begun."""
        return {"asked": [issued.cut for issued in self.asked], "begun": self._came - len(self.delivered)}
