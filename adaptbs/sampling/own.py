"""Batch samplers that serve one loader alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .batch_sampler import AdaptiveBatchSampler
from .stream import StreamSampler

SOMEBODY_ELSE = (
    "the batch sampler of an AdaptiveDataLoader is being iterated, and not by its loader. Some libraries build a "
    "DataLoader of their own around loader.batch_sampler: its batches would be neither counted nor measured, and "
    "their size would never change. The AdaptiveDataLoader has to be iterated itself, not rebuilt around its "
    "batch_sampler: leave it out of what the library prepares. adaptbs.accelerate.adaptive makes a loader for "
    "accelerate, which goes on within an epoch by itself, without skip_first_batches"
)


class OwnBatchSampler(AdaptiveBatchSampler):
    """Cuts batches for one loader, which must be in `opened` when it begins to iterate."""

    _is_open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A context in which the loader may begin an iteration."""
        before, self._is_open = self._is_open, True
        try:
            yield
        finally:
            self._is_open = before

    def __iter__(self) -> Iterator[list[int]]:
        """Begin an iteration. Raises RuntimeError outside of `opened`."""
        if not self._is_open:
            raise RuntimeError(SOMEBODY_ELSE)
        return super().__iter__()


class OwnStreamSampler(OwnBatchSampler, StreamSampler):
    """Requests a stream's batches for one loader; see OwnBatchSampler."""
