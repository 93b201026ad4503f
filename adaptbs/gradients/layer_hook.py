"""Hooks on a layer's call: one that is not copied or saved with the layer, and one on its output's gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn


class LayerHook:
    """A forward hook of ours. A model may be copied or saved while it is watched, and its copies are not.

    A deep copy of a layer, such as an average of the weights is kept in, gets a hook that does nothing and goes at its
    first call. A saved layer gets a function of Python's own library that does nothing, so that whoever loads it needs
    nothing of ours.

    Args:
        function: called with the layer, its arguments, its keyword arguments and, after its forward, its output.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, layer: nn.Module, *given: Any) -> None:
        self._function(layer, *given)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerHook:
        return Passing()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class Passing(LayerHook):
    """The hook of a copied layer: it removes itself."""

    def __init__(self) -> None:
        super().__init__(self._remove)

    def _remove(self, layer: nn.Module, *_: Any) -> None:
        before = layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs
        for hooks, with_kwargs in (before, (layer._forward_hooks, layer._forward_hooks_with_kwargs)):
            for number in [n for n, hook in hooks.items() if hook is self]:
                del hooks[number]
                with_kwargs.pop(number, None)


class GradientHook:
    """Calls a function with a parameter's gradient as it arrives, until it is removed.

    What torch leaves of a hook that was removed is called, with nothing to do, at every backward pass.
    """

    def __init__(self, parameter: Tensor, function: Callable[[Tensor], object]) -> None:
        self._parameter = parameter
        self._handle = parameter.register_hook(function)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Call it no longer, and leave nothing where there is no other hook."""
        self._handle.remove()
        parameter = self._parameter
        if not parameter._backward_hooks:
            parameter._backward_hooks = None


def on_gradient(output: Tensor, function: Callable[[Tensor], None]) -> None:
    """Let `function` be called with the gradient of a layer's output when it arrives.

    `Tensor.register_hook` does the same and takes as long as the norms of a small layer.
    """
    node, place = output.grad_fn, output.output_nr
    if node is None:  # a layer that returns its parameter
        output.register_hook(function)  # type: ignore[no-untyped-call]
        return

    def arrives(gradients: tuple[Tensor | None, ...]) -> None:
        g = gradients[place]
        if g is not None:
            function(g)

    node.register_prehook(arrives)
