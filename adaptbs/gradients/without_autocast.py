"""A context for computing norms inside the user's backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context that turns off gradients, and the user's autocast, in which norms would overflow in float16."""
    # A backward pass usually has neither, and a context costs as much time as a small layer's norms.
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(device_type):
        return nullcontext()
    context = ExitStack()
    context.enter_context(torch.no_grad())
    context.enter_context(torch.autocast(device_type, enabled=False))
    return context
