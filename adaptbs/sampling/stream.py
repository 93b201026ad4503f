"""Batches of an IterableDataset. Sizes are requested, and the batches that arrive show how many samples there were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from ..model import batch_length
from .batch_info import BatchInfo
from .batch_sampler import AdaptiveBatchSampler, EpochCut


class StreamSampler(AdaptiveBatchSampler):
    """Requests batches without end. The dataset, or its last worker, ends the epoch.

    Its `sampler` only gives the assumed length of an epoch, for the pace of decisions and the schedule.
    """

    def _new_cut(self) -> StreamEpochCut:
        return StreamEpochCut(self, self._rest)


class StreamEpochCut(EpochCut):
    """One epoch of a stream.

    A worker whose data have ended does not deliver the batches still requested from it. They never enter `delivered`.

    Attributes:
        asked: every batch requested in this epoch, so that a resumed run can request the same again.
        delivered: every batch that has arrived and that the loop has not begun.
    """

    def __init__(self, sampler: StreamSampler, rest: dict[str, Any] | None = None) -> None:
        super().__init__(sampler, rest)
        self.asked: list[BatchInfo] = []
        self.delivered: deque[BatchInfo] = deque()
        self._came = self._samples = 0  # batches that have arrived, and the samples of those that were delivered
        self._to_skip = self._rest["begun"] if self._rest else 0

    def batches(self) -> Iterator[list[int]]:
        """Yield one list per requested batch, with one entry per requested sample. The entries are not used."""
        for cut_size, num_samples, ends_step in self._rest["asked"] if self._rest else ():
            yield self._ask(BatchInfo(cut_size, num_samples, ends_step))
        per_step = self._sampler.batches_per_step
        self._batch = len(self.asked) % per_step
        self._cut_size = self.asked[-1].cut_size if self.asked else 0
        while True:
            if not self._batch:
                self._cut_size = self._sampler.size()
            self._batch = (self._batch + 1) % per_step
            yield self._ask(BatchInfo(self._cut_size, self._cut_size // per_step, not self._batch))

    def _ask(self, issued: BatchInfo) -> list[int]:
        self.asked.append(issued)
        self.issued.append(issued)
        return [0] * issued.num_samples

    @property
    def queue(self) -> deque[BatchInfo]:
        return self.delivered

    def is_new(self, batch: Any) -> bool:
        """Match a fetched batch with its request. False if the batch was delivered before the run was resumed."""
        issued = self._answered(_num_samples(batch))
        self._came += 1
        if self._came <= self._to_skip:
            return False
        self.delivered.append(issued)
        self._samples += issued.num_samples
        return True

    @property
    def length(self) -> int:
        """Batches that have arrived, and those that the assumed length of the epoch leaves at the size of now."""
        sampler = self._sampler
        left = max(sampler.epoch_samples - self._samples, 0)
        return self._came - min(self._came, self._to_skip) + -(-left * sampler.batches_per_step // sampler.size())

    def _answered(self, held: int | None) -> BatchInfo:
        """Take the request that a batch of `held` samples answers. `held` is None if its layout does not tell."""
        # A collate function may make more samples than were requested.
        if held is None or held > max(issued.num_samples for issued in self.issued):
            return self.issued.popleft()
        while self.issued[0].num_samples < held:  # the request went to an exhausted worker
            self.issued.popleft()
        return self.issued.popleft()._replace(num_samples=held)

    def state_dict(self) -> dict[str, Any]:
        """All batches requested in this epoch, and the number of them that the loop has begun."""
        return {"asked": [issued.cut for issued in self.asked], "begun": self._came - len(self.delivered)}


def _num_samples(batch: Any) -> int | None:
    """Number of samples in a batch. None if its layout does not tell."""
    try:
        return batch_length(batch)
    except TypeError:
        return None
