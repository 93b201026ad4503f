"""Back through the graph of a loss, however it was made, without the parameters' `.grad` noticing."""

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
        in_half: whether float16 is anywhere in it, by autocast or by the model's own type.
    """

    def __init__(self, loss: Tensor) -> None:
        self._loss = loss
        self._nodes = _nodes(loss)
        self.in_half = any(into.dtype == torch.float16 for node in self._nodes for into in node._input_metadata)

    def gradient(self, parameters: Sequence[Tensor], scale: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Of the loss (times `scale`), for each parameter; None where it does not depend on one."""
        scale = scale.to(self._loss.dtype) if scale is not None else None
        if not any("Checkpoint" in node.name() for node in self._nodes):
            return torch.autograd.grad(self._loss, parameters, scale, allow_unused=True)
        # Reentrant checkpoints (torch's use_reentrant=True, and their like elsewhere) know `backward` only, which adds
        # to `.grad`: of parameters, and of whatever else the loss was computed from.
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
