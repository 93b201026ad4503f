"""Batches whose size may change at any step, and what is left of an epoch."""

from .batch_sampler import AdaptiveBatchSampler, Cut, Issued
from .epochs import Feed

__all__ = ["AdaptiveBatchSampler", "Cut", "Feed", "Issued"]
