"""Copies of torch's optimizers."""

from __future__ import annotations

import copy
from types import FunctionType
from typing import TypeVar

from torch.optim import Optimizer

T = TypeVar("T", bound=Optimizer)

# Types of the attributes that `without_hooks` copies. Larger ones would be shared: an inner optimizer, a list, what a
# scheduler has put there.
SETTINGS = (bool, int, float, str, FunctionType, type(None))


def without_hooks(optimizer: T) -> T:
    """A copy that has the optimizer's own parameter groups and state, but none of its hooks and schedulers.

    torch copies only groups and state. The steps of some classes need settings that are kept beside them.
    """
    twin = copy.copy(optimizer)
    for name, value in vars(optimizer).items():
        if isinstance(value, SETTINGS) and name != "step":  # a scheduler wraps the step
            vars(twin).setdefault(name, value)
    return twin
