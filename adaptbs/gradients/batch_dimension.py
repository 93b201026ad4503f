"""The batch dimension of a layer's tensors: the first, or the second if the positions of a sequence come first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from .convolutions import CONVOLUTIONS
from .terms import NotNow, Unsupported

BATCH_FIRST = (*CONVOLUTIONS, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.batchnorm._BatchNorm)


class BatchDimensions:
    """Finds the batch dimension of each layer's tensors.

    If the lengths alone do not tell, it is the dimension that was the same layer's when they did.

    Args:
        model: the model. If one of its layers has batch_first=False, positions may come first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: dict[nn.Module, set[int]] = {}  # batch dimensions of each layer when lengths left no doubt
        self._has_assumed = False  # True once examples were taken to come first without a sign of it

    def examples_first(self, layer: nn.Module, tensors: Sequence[Any], sizes: Collection[int]) -> list[Any]:
        """A layer's inputs and gradient with the examples along the first dimension.

        Args:
            layer: the layer.
            tensors: its inputs, and last the gradient of its output.
            sizes: lengths that a batch may have.

        Raises:
            Unsupported: for a single example without a batch dimension.
            NotNow: if the lengths do not show which dimension it is.
        """
        g = tensors[-1]
        if g.dim() == 2 and not isinstance(layer, BATCH_FIRST):
            return list(tensors)
        if g.dim() < (3 if isinstance(layer, BATCH_FIRST) else 2) and not isinstance(layer, (nn.BatchNorm1d, nn.PReLU)):
            raise Unsupported(
                f"a {type(layer).__name__} returns tensors of too few dimensions to tell examples from features"
            )
        if g.dim() < 3 or not sizes or _examples_come_first(layer, g):
            return list(tensors)
        return [_swapped(x, g) for x in tensors] if self._dimension(layer, tensors, sizes) == 1 else list(tensors)

    def _dimension(self, layer: nn.Module, tensors: Sequence[Any], sizes: Collection[int]) -> int:
        g = tensors[-1]
        first, second = (g.shape[i] in sizes for i in (0, 1))
        if not second:
            if first:
                self._seen.setdefault(layer, set()).add(0)
            return 0
        # The first dimension may also be examples times windows, each with as many positions as there are examples.
        # Then its length is a multiple of the second's.
        if not first and (g.shape[0] % g.shape[1] or self._positions_first()):
            if g.shape[0] > 1:  # else it may be one row of positions that all examples share
                self._find_positions_first(layer)
            return 1
        seen = self._seen.get(layer, set())
        if len(seen) == 1:
            return next(iter(seen))
        if first and not self._positions_first() and not any(_is_transposed(x, g) for x in tensors[:-1]):
            self._has_assumed = True
            return 0
        why = "as many positions as examples" if first else "a multiple of the examples along its first dimension"
        raise NotNow(f"a {type(layer).__name__} has {why}, and either may come first")

    def _find_positions_first(self, layer: nn.Module) -> None:
        self._seen.setdefault(layer, set()).add(1)
        if self._has_assumed:
            self._has_assumed = False
            why = "seems to have positions first, where others were taken to have examples"
            raise NotNow(f"a {type(layer).__name__} {why}")

    def _positions_first(self) -> bool:
        """True if positions come first somewhere in the model."""
        said = (getattr(m, "batch_first", True) is False for m in self._model.modules())
        return any(1 in seen for seen in self._seen.values()) or any(said)


def _examples_come_first(layer: nn.Module, g: Tensor) -> bool:
    """True if a layer takes no other dimension for that of the batch."""
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return g.dim() - len(layer.normalized_shape) < 2
    return isinstance(layer, BATCH_FIRST) or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1)


def _swapped(x: Any, g: Tensor) -> Any:
    return x.transpose(0, 1) if _is_alike(x, g) else x


def _is_transposed(x: Any, g: Tensor) -> bool:
    """True if the first two dimensions of an input lie in memory as if they had been exchanged."""
    return _is_alike(x, g) and 0 < x.stride(0) < x.stride(1)


def _is_alike(x: Any, g: Tensor) -> bool:
    return isinstance(x, Tensor) and x.dim() >= 2 and x.shape[:2] == g.shape[:2]
