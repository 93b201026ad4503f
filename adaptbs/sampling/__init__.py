"""Batches whose size may change at any step, and what is left of an epoch."""

from .batch_info import BatchInfo
from .batch_sampler import AdaptiveBatchSampler, EpochCut
from .epochs import EpochSource
from .first import FirstSampler
from .ranks import SharedSampler, whole_order

__all__ = [
    "AdaptiveBatchSampler",
    "BatchInfo",
    "EpochCut",
    "EpochSource",
    "FirstSampler",
    "SharedSampler",
    "whole_order",
]
