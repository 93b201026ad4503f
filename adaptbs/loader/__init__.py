"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from .data_loader import AdaptiveDataLoader

__all__ = ["AdaptiveDataLoader"]
