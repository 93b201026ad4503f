"""bs_find: what `lr_find` is for the learning rate, for the batch size."""

from .find import bs_find, copy_of, find_batch_size
from .suggestion import BatchSizeSuggestion

__all__ = ["BatchSizeSuggestion", "bs_find", "copy_of", "find_batch_size"]
