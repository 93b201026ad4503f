"""Where the examples are in a layer's tensors: along the first dimension, or behind the positions of a sequence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from .convolutions import CONVOLUTIONS
from .terms import NotNow, Unsupported

BATCH_FIRST = (*CONVOLUTIONS, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.batchnorm._BatchNorm)


def examples_first(layer: nn.Module, tensors: Sequence[Any], sizes: Collection[int], model: nn.Module) -> list[Any]:
    """A layer's inputs and gradient with the examples along the first dimension.

    Args:
        layer: the layer.
        tensors: its inputs, and last the gradient of its output.
        sizes: lengths that a batch may have.
        model: the model; if one of its layers says batch_first=False, positions may come first.

    Raises:
        Unsupported: for a single example without a batch dimension.
        NotNow: if both dimensions have a batch's length.
    """
    g = tensors[-1]
    if g.dim() < (3 if isinstance(layer, BATCH_FIRST) else 2) and not isinstance(layer, (nn.BatchNorm1d, nn.PReLU)):
        raise Unsupported(f"a {type(layer).__name__} does not have the examples of a batch along its first dimension")
    if isinstance(layer, BATCH_FIRST) or g.dim() < 3 or not sizes:
        return list(tensors)
    first, second = (g.shape[i] in sizes for i in (0, 1))
    if not second or (first and not _positions_first(model)):
        return list(tensors)
    if first:
        raise NotNow(f"a {type(layer).__name__} has as many positions as examples, and either may come first")
    return [_swapped(x, g) for x in tensors]


def _positions_first(model: nn.Module) -> bool:
    return any(getattr(m, "batch_first", True) is False for m in model.modules())


def _swapped(x: Any, g: Tensor) -> Any:
    alike = isinstance(x, Tensor) and x.dim() >= 2 and x.shape[:2] == g.shape[:2]
    return x.transpose(0, 1) if alike else x
