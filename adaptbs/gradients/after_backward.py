"""Runs a function at the end of a backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch


def after_backward(callback: Callable[[], None]) -> None:
    """Call `callback` at the end of the running backward pass, after callbacks that were queued earlier."""
    cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(callback)
