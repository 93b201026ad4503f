"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from .adapted import AdaptedLoader
from .data_loader import AdaptiveDataLoader
from .driven_scheduler import drive, release
from .learnt_driver import LearntDriver
from .loop_facts import LoopFacts
from .stock_loader import cuts_as_torch, made_with, over_all

__all__ = [
    "AdaptedLoader",
    "AdaptiveDataLoader",
    "LearntDriver",
    "LoopFacts",
    "cuts_as_torch",
    "drive",
    "made_with",
    "over_all",
    "release",
]
