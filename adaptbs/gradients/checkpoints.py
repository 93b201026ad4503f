"""Layers inside activation checkpoints, whose inputs are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Computes the terms of a call from its inputs and the gradient of its output.
Use = Callable[[Sequence[Any], Tensor], None]


def packs() -> Any:
    """The innermost hook that packs the tensors that autograd saves. A checkpoint sets one. None if there is none."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = top(True) if top is not None else None
    return hooks[0] if hooks is not None else None


def in_checkpoint() -> bool:
    """True inside a checkpoint that is not reentrant, also while it is run again."""
    return getattr(packs(), "__module__", None) == "torch.utils.checkpoint"


class Call:
    """A call of a layer inside a checkpoint. Its gradient may arrive before its inputs are computed again.

    Keeping the inputs from the forward pass would hold the memory that the checkpoint is there to save.

    Args:
        use: called with the inputs and the gradient, once both are there.
        begins: called when the gradient arrives, which is earlier: memory may run out before the inputs are there.
    """

    def __init__(self, use: Use, begins: Callable[[], object]) -> None:
        self._use, self._begins = use, begins
        self._g: Tensor | None = None
        self._inputs: Sequence[Any] | None = None
        self.is_run_again = False

    @property
    def waits(self) -> bool:
        """True while the gradient waits for the inputs."""
        return self._g is not None

    def arrives(self, g: Tensor) -> None:
        """Take its gradient."""
        self._begins()
        self._g = g
        self._meet()

    def run_again(self, inputs: Sequence[Any]) -> None:
        """Take its inputs."""
        self._inputs, self.is_run_again = inputs, True
        self._meet()

    def drop(self) -> None:
        """Release inputs and gradient. Whoever keeps a loss keeps its graph, and with it this call."""
        self._g = self._inputs = None

    def _meet(self) -> None:
        g, inputs = self._g, self._inputs
        if g is not None and inputs is not None:
            self._g = self._inputs = None
            self._use(inputs, g)


class Calls:
    """The calls of layers inside checkpoints.

    The backward pass runs a checkpoint again when it reaches it, as a rule the latest first. Within a checkpoint the
    calls of a layer come in the order of the forward pass.
    """

    def __init__(self) -> None:
        self._checkpoints: list[tuple[Any, dict[nn.Module, list[Call]]]] = []

    def knows(self, layer: nn.Module) -> bool:
        """True if the layer was called inside a checkpoint."""
        return any(layer in calls for _, calls in self._checkpoints)

    def add(self, layer: nn.Module, use: Use, begins: Callable[[], object]) -> Call:
        """Record a call of the forward pass. The arguments are those of `Call`."""
        call, checkpoint = Call(use, begins), packs()
        calls = next((calls for known, calls in reversed(self._checkpoints) if known is checkpoint), None)
        if calls is None:
            calls = {}
            self._checkpoints.append((checkpoint, calls))
        calls.setdefault(layer, []).append(call)
        return call

    def run_again(self, layer: nn.Module, inputs: Sequence[Any]) -> None:
        """Match a call of the backward pass with its call of the forward pass, and give that one its inputs."""
        found: Call | None = None
        for _, calls in reversed(self._checkpoints):
            call = next((call for call in calls.get(layer, ()) if not call.is_run_again), None)
            if call is not None and any(c.waits or c.is_run_again for each in calls.values() for c in each):
                found = call
                break
            found = found or call
        if found is not None:
            found.run_again(inputs)

    @property
    def any_waits(self) -> bool:
        """True if a gradient still waits for its inputs."""
        return any(call.waits for _, calls in self._checkpoints for each in calls.values() for call in each)

    def forget(self) -> None:
        """Forget the calls of a pass that never ended. Their layers stay known, since their hooks stay."""
        for _, calls in self._checkpoints:
            for each in calls.values():
                for call in each:
                    call.drop()
                each.clear()

    def clear(self) -> None:
        """Forget all calls and layers."""
        self.forget()
        self._checkpoints = []
