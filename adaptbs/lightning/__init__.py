"""AdaptiveBatchSize, a callback for Lightning's Trainer."""

from .callback import AdaptiveBatchSize

__all__ = ["AdaptiveBatchSize"]
