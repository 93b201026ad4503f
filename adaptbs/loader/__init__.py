"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from .adapted import AdaptedLoader
from .arguments import made_with, over_all
from .data_loader import AdaptiveDataLoader
from .driven import drive
from .loop_facts import LoopFacts
from .scheduler import SchedulerDriver

__all__ = ["AdaptedLoader", "AdaptiveDataLoader", "LoopFacts", "SchedulerDriver", "drive", "made_with", "over_all"]
