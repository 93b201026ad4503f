"""`python -m adaptbs demo`: compares a fixed batch with an adaptive one on real data."""

from .compare import main

__all__ = ["main"]
