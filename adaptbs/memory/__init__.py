"""What fits: a device's memory, trials of a size, the limit of a run, and going on after running out."""

from .device import DeviceMemory, memory_of
from .limit import MemoryCap
from .pieces import in_pieces, pieces_of, shares
from .probe import MemoryProbe, probe_batches, probe_memory
from .recovery import is_out_of_memory, take_step
from .trial import GrowthTrial

__all__ = [
    "DeviceMemory",
    "GrowthTrial",
    "MemoryCap",
    "MemoryProbe",
    "in_pieces",
    "is_out_of_memory",
    "memory_of",
    "pieces_of",
    "probe_batches",
    "probe_memory",
    "shares",
    "take_step",
]
