"""Gradients of a loss that leave the parameters' `.grad` unchanged, also with reentrant checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..model import preserved_grads


class Graph:
    """The autograd graph of a loss.

    Attributes:
        in_half: True if any tensor in the graph is float16, by autocast or by the model's own type.
    """

    def __init__(self, loss: Tensor) -> None:
        self._loss = loss
        self._nodes = _nodes(loss)
        self.in_half = any(into.dtype == torch.float16 for node in self._nodes for into in node._input_metadata)

    def gradient(self, parameters: Sequence[Tensor], scale: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Gradient of the loss, times `scale` if given, for each parameter. None if the loss does not depend on it."""
        scale = scale.to(self._loss.dtype) if scale is not None else None
        if not any("Checkpoint" in node.name() for node in self._nodes):
            return torch.autograd.grad(self._loss, parameters, scale, allow_unused=True)
        # Reentrant checkpoints, such as torch's with use_reentrant=True, support only `backward`. It adds to `.grad` of
        # parameters and of every other leaf that the loss was computed from.
        accumulators: list[Any] = [node for node in self._nodes if node.name().endswith("AccumulateGrad")]
        leaves = [node.variable for node in accumulators]
        with preserved_grads([*parameters, *leaves]):
            torch.autograd.backward(self._loss, scale)
            return tuple(p.grad for p in parameters)


def _nodes(loss: Tensor) -> set[Node]:
    found: set[Node] = set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [earlier for earlier, _ in node.next_functions]
    return found
