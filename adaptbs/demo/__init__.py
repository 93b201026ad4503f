"""`python -m adaptbs demo`: a fixed batch and an adaptive one, side by side on real data."""

from .compare import main

__all__ = ["main"]
