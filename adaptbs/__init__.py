"""adaptbs: the batch size as something training sets by itself."""

from .finder import BatchSizeSuggestion, bs_find
from .global_batch import GlobalBatch
from .hyperparameters import one_cycle
from .loader import AdaptiveDataLoader
from .memory import MemoryProbe, probe_memory
from .types import NoiseScale, SquaredNorms

__version__ = "0.1.0"

__all__ = [
    "AdaptiveDataLoader",
    "BatchSizeSuggestion",
    "GlobalBatch",
    "MemoryProbe",
    "NoiseScale",
    "SquaredNorms",
    "bs_find",
    "one_cycle",
    "probe_memory",
]
