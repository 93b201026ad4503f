"""Batches whose size may change at any step, and what is left of an epoch."""

from .batch_sampler import AdaptiveBatchSampler, BatchInfo, EpochCut
from .epochs import EpochSource

__all__ = ["AdaptiveBatchSampler", "BatchInfo", "EpochCut", "EpochSource"]
