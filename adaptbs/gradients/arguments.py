"""The arguments of a layer's call, kept until the gradient of its output arrives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .terms import Unsupported


def detached(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, detached from their graph. Raises Unsupported if the first is a parameter."""
    if inputs and isinstance(inputs[0], nn.Parameter):
        raise Unsupported("a layer is called on a parameter, which all examples share")
    return [x.detach() if isinstance(x, Tensor) else x for x in inputs]


def in_order(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call in the order of the layer's signature, defaults included."""
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in bound.signature.parameters.values()):
        raise Unsupported(f"a {type(layer).__name__} is called by keywords that its signature does not name")
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def as_called(layer: nn.Module, inputs: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments in the order of the layer's signature, as positional ones and those that it takes by keyword alone."""
    parameters = list(inspect.signature(layer.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return inputs, {}
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    return inputs[:positional], dict(zip(by_keyword, inputs[positional:], strict=False))


class Inputs:
    """Keeps the inputs of a layer's call until the gradient of its output arrives.

    Only the hook that waits for the gradient holds them. So they are freed with the graph, even if there is no backward
    pass.

    Args:
        values: the inputs, detached.
        use: called with the inputs and the gradient.
    """

    def __init__(self, values: list[Any], use: Callable[[list[Any], Tensor], None]) -> None:
        self._values: list[Any] | None = values
        self._use = use

    def arrives(self, g: Tensor) -> None:
        """Take the gradient. Release the inputs, unless autograd keeps the graph for another pass."""
        values = self._values
        if values is None:
            raise Unsupported("a layer gets several gradients from one call")
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            self._values = None
        self._use(values, g)

    def drop(self) -> None:
        """Release the inputs."""
        self._values = None
