"""Batches whose size may change at any step, and what is left of a pass over the data."""

from .batch_info import BatchInfo
from .batch_sampler import AdaptiveBatchSampler
from .draw import read_all
from .epoch_passes import EpochPasses
from .epochs import EpochSource
from .first import FirstSampler
from .pass_cut import PassCut
from .ranks import SharedSampler, whole_order

__all__ = [
    "AdaptiveBatchSampler",
    "BatchInfo",
    "EpochPasses",
    "EpochSource",
    "FirstSampler",
    "PassCut",
    "SharedSampler",
    "read_all",
    "whole_order",
]
