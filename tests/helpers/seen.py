"""A list for what a test sees in a pass that leaves no trace, which puts back a plain list."""

from __future__ import annotations

from typing import Any


class Seen(list[Any]):
    """A list that is none of the plain containers whose entries such a pass restores."""
