"""fastai: `learn.fit_one_cycle(n, lr, cbs=AdaptiveBatchSize())` and `learn.bs_find()`."""

from .callback import AdaptiveBatchSize
from .finder import bs_find
from .pictures import ShowBatchSizeCallback

__all__ = ["AdaptiveBatchSize", "ShowBatchSizeCallback", "bs_find"]
