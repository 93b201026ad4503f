"""The terms of a layer without a formula, such as a small one of the user's, by differentiating it for each example."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..model import AttributeCopies
from .arguments import as_called
from .mean_gradient import dense
from .terms import AT_ONCE, Stored, Term, Unsupported, squared

__all__ = ["by_differentiating", "why_not_differentiated"]


def why_not_differentiated(layer: nn.Module) -> str | None:
    """The reason why a layer cannot be differentiated example by example; None if it may be tried."""
    if next(layer.children(), None) is not None:
        return "it has parameters of its own besides its layers'"
    if isinstance(layer, nn.RNNBase):
        return "there is no formula for this layer"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return "in training mode it ties the examples of a batch together"
    return None


def by_differentiating(layer: nn.Module, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    """The terms of a layer's parameters, by a forward and backward pass through this layer alone.

    It serves layers that libraries write themselves, such as an RMSNorm, a scale for each channel or a linear layer in
    another layout. A layer that draws torch's random numbers or changes a buffer in place raises an error here.
    Counters and the like that it keeps are set back afterwards, and the user's hooks on it are not called.

    Args:
        layer: a layer without child layers.
        inputs: inputs of its call. Tensors of len(g) entries are taken to have one entry for each example.
        g: gradient of its output, with the examples along its first dimension.
    """
    with _set_back(layer):
        return _terms(layer, inputs, g)


@contextmanager
def _set_back(layer: nn.Module) -> Iterator[None]:
    """A context that sets a layer's attributes back at its end, and the random states that torch does not watch."""
    attributes, drawn = AttributeCopies([layer]), (random.getstate(), np.random.get_state())
    attributes.take()
    try:
        yield
    finally:
        attributes.restore()
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])


class _Unhooked(nn.Module):
    """A layer without the hooks on it. What changes its inputs has done so already, and what reads them has read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any) -> Any:
        args, kwargs = as_called(self.layer, inputs)
        return self.layer.forward(*args, **kwargs)


def _terms(layer: nn.Module, inputs: Sequence[Any], g: Tensor) -> Mapping[Tensor, Term]:
    unhooked = _Unhooked(layer)
    parameters = {name: p for name, p in unhooked.named_parameters() if p.requires_grad}
    # Buffers too, so that one which the layer assigns anew is the old one again.
    others = {name: p.detach() for name, p in unhooked.named_parameters() if not p.requires_grad}
    others |= dict(unhooked.named_buffers())
    n, numbers = len(g), sum(p.numel() for p in parameters.values())
    batched = [0 if isinstance(x, Tensor) and x.dim() and len(x) == n else None for x in inputs]
    values = {name: dense(p.detach()) for name, p in parameters.items()}

    def inner_product(values: dict[str, Tensor], g: Tensor, *inputs: Any) -> Tensor:
        again = [x[None] if axis == 0 else x for x, axis in zip(inputs, batched, strict=True)]
        product: Tensor = (functional_call(unhooked, {**others, **values}, tuple(again)) * g[None]).sum()
        return product

    inputs = [dense(x.detach()) if isinstance(x, Tensor) else x for x in inputs]
    terms = _or_unsupported(layer, vmap(grad(inner_product), in_dims=(None, 0, *batched), randomness="error"))
    if n * numbers <= AT_ONCE:
        found = terms(values, dense(g), *inputs)
        return {p: Stored(found[name]) for name, p in parameters.items()}
    size = max(1, AT_ONCE // numbers)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, n, size):
        chunk = [x[start : start + size] if axis == 0 else x for x, axis in zip(inputs, batched, strict=True)]
        for name, term in terms(values, dense(g[start : start + size]), *chunk).items():
            zero = torch.zeros((), device=term.device)
            squares, total = sums.get(name, (zero, zero))
            sums[name] = squares + squared(term), total + term.sum(0)
    return {p: Reduced(n, *sums[name]) for name, p in parameters.items()}


def _or_unsupported(layer: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which raises Unsupported if torch cannot differentiate the layer this way."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise Unsupported(
                f"a {type(layer).__name__} cannot be differentiated example by example: {error}"
            ) from error.with_traceback(None)

    return call


class Reduced:
    """Terms that are not kept: only the sum of their squared norms and their total."""

    def __init__(self, examples: int, squares: Tensor, total: Tensor) -> None:
        self.examples, self._squares, self._total = examples, squares, total

    def squared(self) -> Tensor:
        return self._squares

    def total(self) -> Tensor:
        return self._total

    def joined(self, other: Term) -> Term:
        raise Unsupported("a large layer without a formula is used several times in one pass")
