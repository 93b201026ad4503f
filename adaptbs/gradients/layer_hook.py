"""Hooks on a layer's call: one that is not copied or saved with the layer, and one on its output's gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from .terms import Unsupported


class LayerHook:
    """A forward hook that stays behind when its layer is copied or saved.

    A deep copy of a layer, such as a copy that averages weights, gets a hook that removes itself at its first call. A
    saved layer gets a function of Python's library that does nothing, so loading it does not need adaptbs.

    Args:
        function: called with the layer, its arguments, its keyword arguments and, in a forward hook, its output.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, layer: nn.Module, *given: Any) -> None:
        self._function(layer, *given)

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerHook:
        return SelfRemovingHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class SelfRemovingHook(LayerHook):
    """The hook of a copied layer. It removes itself at its first call."""

    def __init__(self) -> None:
        super().__init__(self._remove)

    def _remove(self, layer: nn.Module, *_: Any) -> None:
        before = layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs
        for hooks, with_kwargs in (before, (layer._forward_hooks, layer._forward_hooks_with_kwargs)):
            for number in [n for n, hook in hooks.items() if hook is self]:
                del hooks[number]
                with_kwargs.pop(number, None)


class GradientHook:
    """Calls a function with a parameter's gradient when it arrives, until it is removed.

    torch's own handle leaves an empty dict of hooks behind, which costs a call at every backward pass.
    """

    def __init__(self, parameter: Tensor, function: Callable[[Tensor], object]) -> None:
        self._parameter = parameter
        self._handle = parameter.register_hook(function)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Remove the hook, and the dict of hooks if it is empty then."""
        self._handle.remove()
        parameter = self._parameter
        if not parameter._backward_hooks:
            parameter._backward_hooks = None


def on_gradient(output: Tensor, function: Callable[[Tensor], None]) -> None:
    """Let `function` be called with the gradient of a layer's output when it arrives.

    `Tensor.register_hook` does the same and takes as long as the norms of a small layer.

    Raises:
        Unsupported: if the output is no result but a parameter itself.
    """
    if output.grad_fn is None:
        raise Unsupported("a layer returns its parameter, which all examples share")
    source = _source_of(output)
    node, place, shape = source.grad_fn, source.output_nr, output.shape
    assert node is not None

    def arrives(gradients: tuple[Tensor | None, ...]) -> None:
        g = gradients[place]
        if g is not None:
            function(g.reshape(shape))

    node.register_prehook(arrives)


def _source_of(output: Tensor) -> Tensor:
    """The tensor whose node is sure to have the gradient of a layer's output: the output, or what it is a view of.

    A Linear of sequences and an InstanceNorm return a view. Where it is changed in place after the call, as by
    `ReLU(inplace=True)` or `+=`, torch replaces the node of the view, and only that of its base stays in the graph.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output
