"""The terms of a convolution's weight, of any dimension and also transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mean_gradient import dense
from .terms import Term, Unsupported, in_chunks, outer_numbers, same_kind, squared, squared_outer

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


class Convolved:
    """Terms of the weight of a convolution, from its inputs x (n, in, *size) and the gradients g (n, out, *size).

    A convolution of one or two dimensions is a linear layer on patches, so `squared_outer` serves it. For the other
    kinds the terms themselves are computed, chunk by chunk.

    Args:
        layer: the convolution.
        uses: (x, g) of each time that the examples use it.
    """

    def __init__(self, layer: Any, uses: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._layer, self._uses = layer, list(uses)

    @property
    def examples(self) -> int:
        return len(self._uses[0][0])

    def squared(self) -> Tensor:
        layer, g = self._layer, self._uses[0][1]
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            positions = sum(g[0, 0].numel() for _, g in self._uses)
            patch = layer.weight[0].numel()
            result = layer.groups * outer_numbers(positions, patch, len(layer.weight) // layer.groups)
            each, rule = max(result, patch * layer.groups * positions, g[0].numel()), self._by_patches
        else:
            each, rule = layer.weight.numel(), self._by_terms
        return in_chunks(rule, each, *(tensor for use in self._uses for tensor in use))

    def total(self) -> Tensor:
        return sum(
            (self._gradient(dense(x), dense(g)) for x, g in self._uses), torch.zeros((), device=self._uses[0][0].device)
        )

    def joined(self, other: Term) -> Term:
        also = same_kind(self, other)
        if also._layer is not self._layer:
            raise Unsupported("two convolutions share a weight")
        return Convolved(self._layer, [*self._uses, *also._uses])

    def _by_patches(self, *tensors: Tensor) -> Tensor:
        patches = _beside([self._patches(x) for x in tensors[::2]])
        g = _beside([g.flatten(2) for g in tensors[1::2]])
        groups = zip(patches.chunk(self._layer.groups, 1), g.chunk(self._layer.groups, 1), strict=True)
        found = [squared_outer(p.mT, out.mT) for p, out in groups]
        return torch.stack(found).sum() if len(found) > 1 else found[0]

    def _patches(self, x: Tensor) -> Tensor:
        """Patches, shape (n, in * kernel, positions)."""
        layer, (x, padding) = self._layer, self._padded(x)
        if isinstance(layer, nn.Conv2d):
            return F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
        lead = {"dilation": (1, *layer.dilation), "padding": (0, *padding), "stride": (1, *layer.stride)}
        return F.unfold(x[:, :, None], (1, *layer.kernel_size), **lead)  # as an image of one row

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input, padded already if not by a number of zeros, and the padding that is left to do."""
        layer = self._layer
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            return x, layer.padding
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.kernel_size)

    def _by_terms(self, *tensors: Tensor) -> Tensor:
        uses = zip(tensors[::2], tensors[1::2], strict=True)
        each = torch.func.vmap(lambda x, g: self._gradient(x[None], g[None]))
        return squared(torch.stack([each(x, g) for x, g in uses]).sum(0))

    def _gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The weight's gradient."""
        layer, (x, padding) = self._layer, self._padded(x)
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            g, x, layer.weight.to(x.dtype), None, layer.stride, padding, layer.dilation,
            transposed, layer.output_padding, layer.groups, [False, True, False],
        )  # fmt: skip
        return cast(Tensor, gradient)


def _beside(uses: Sequence[Tensor]) -> Tensor:
    """The positions of all uses; a copy only if there are several."""
    return torch.cat(list(uses), 2) if len(uses) > 1 else uses[0]
