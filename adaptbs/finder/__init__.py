"""bs_find: finds the batch size to use, as `lr_find` does for the learning rate."""

from .doubts import samples_of
from .find import bs_find, copy_of, find_batch_size
from .suggestion import BatchSizeSuggestion

__all__ = ["BatchSizeSuggestion", "bs_find", "copy_of", "find_batch_size", "samples_of"]
