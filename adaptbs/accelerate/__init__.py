"""AdaptiveDataLoader in a loop with Hugging Face accelerate: `loader = adaptive(accelerator, loader, ...)`."""

from .adaptive import adaptive
from .loader import AcceleratedLoader

__all__ = ["AcceleratedLoader", "adaptive"]
