"""The arguments of a layer's call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .terms import Unsupported


def detached(inputs: Sequence[Any]) -> list[Any]:
    """The inputs without their graph."""
    return [x.detach() if isinstance(x, Tensor) else x for x in inputs]


def in_order(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call in the order of the layer's signature, defaults included."""
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in bound.signature.parameters.values()):
        raise Unsupported(f"a {type(layer).__name__} is called by keywords that its signature does not name")
    bound.apply_defaults()
    return tuple(bound.arguments.values())
