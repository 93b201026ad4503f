"""The arguments of a layer's call, and how long they are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
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


class Inputs:
    """The inputs of a layer's call, until the gradient of its output arrives.

    They lie with the hook that waits for it. So they go with the graph, also where a pass is broken off.

    Args:
        values: the inputs, without their graph.
        use: called with them and the gradient.
    """

    def __init__(self, values: list[Any], use: Callable[[list[Any], Tensor], None]) -> None:
        self._values: list[Any] | None = values
        self._use = use

    def arrives(self, g: Tensor) -> None:
        """Take the gradient, and let go of the inputs if autograd does."""
        values = self._values
        if values is None:
            raise Unsupported("a layer gets several gradients from one call")
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            self._values = None
        self._use(values, g)

    def drop(self) -> None:
        """Let go of the inputs."""
        self._values = None
