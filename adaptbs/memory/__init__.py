"""A device's memory: trials of a size, the limit of a run, and recovery after memory has run out."""

from .cuts import BatchCuts, bounds, lengths
from .device import memory_of
from .limit import MemoryLimit
from .pieces import run_in_pieces, shares
from .probe import MemoryProbe, probe_batches, probe_memory
from .recovery import SafeStep, is_out_of_memory
from .trial import Measures, MemoryTrial

__all__ = [
    "BatchCuts",
    "Measures",
    "MemoryLimit",
    "MemoryProbe",
    "MemoryTrial",
    "SafeStep",
    "bounds",
    "is_out_of_memory",
    "lengths",
    "memory_of",
    "probe_batches",
    "probe_memory",
    "run_in_pieces",
    "shares",
]
