"""Batch samplers that serve one loader alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .batch_sampler import AdaptiveBatchSampler
from .stream import StreamSampler

SOMEBODY_ELSE = (
    "the batch sampler of an AdaptiveDataLoader is being iterated, and not by its loader, as by a library that builds "
    "a DataLoader of its own around loader.batch_sampler: those batches would be neither counted nor measured, and "
    "their size would never change. The AdaptiveDataLoader has to be iterated itself, not rebuilt around its "
    "batch_sampler: leave it out of what the library prepares. adaptbs.accelerate.adaptive makes a loader for "
    "accelerate, which goes on within an epoch by itself, without skip_first_batches"
)


class OwnBatchSampler(AdaptiveBatchSampler):
    """Cuts batches for its loader alone, which says by `opened` when it asks for them."""

    _is_open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Let the loader begin an iteration meanwhile."""
        before, self._is_open = self._is_open, True
        try:
            yield
        finally:
            self._is_open = before

    def __iter__(self) -> Iterator[list[int]]:
        """Begin an iteration.

        Raises:
            RuntimeError: if it is not the loader that begins it.
        """
        if not self._is_open:
            raise RuntimeError(SOMEBODY_ELSE)
        return super().__iter__()


class OwnStreamSampler(OwnBatchSampler, StreamSampler):
    """Requests a stream's batches for its loader alone."""
