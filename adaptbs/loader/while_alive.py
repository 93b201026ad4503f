"""Calls of a method by something that should not be what keeps its object alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def while_alive(method: Callable[..., None]) -> Callable[..., None]:
    """A function that calls the method as long as its object is alive, and then does nothing.

    A hook on the user's optimizer or model that held the method itself would keep a loader that was dropped.
    """
    reference = weakref.WeakMethod(method)

    def call(*values: Any) -> None:
        if (live := reference()) is not None:
            live(*values)

    return call
