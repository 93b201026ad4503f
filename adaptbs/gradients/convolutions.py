"""The terms of a convolution's weight, of any dimension and also transposed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mean_gradient import dense
from .terms import Term, Unsupported, in_chunks, outer_numbers, same_kind, squared_outer

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip

# Patches are a copy, written once and read once. On a CPU so many times fewer than of other numbers are made at a time,
# so that they are read from its second-level cache.
FEWER_ON_CPU = 4


class Convolved:
    """Terms of the weight of a convolution, from its inputs x (n, in, *size) and the gradients g (n, out, *size).

    A convolution is a linear layer on the patches of its input, so `squared_outer` serves it. A transposed convolution
    is the same with the input and the gradient in each other's place. Groups are further examples of a smaller one.

    Args:
        layer: the convolution.
        uses: pairs (x, g), one for each time that the examples use the layer.
    """

    def __init__(self, layer: Any, uses: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._layer, self._uses = layer, list(uses)
        self._transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)

    @property
    def examples(self) -> int:
        return len(self._uses[0][0])

    def squared(self) -> Tensor:
        weight, groups = self._layer.weight, self._layer.groups
        pairs = [(g, x) if self._transposed else (x, g) for x, g in self._uses]
        positions = sum(y[0, 0].numel() for _, y in pairs)
        patch, outputs = weight[0].numel(), len(weight) // groups
        each = groups * max(outer_numbers(positions, patch, outputs), patch * positions, outputs * positions)
        if weight.is_cpu:
            each *= FEWER_ON_CPU
        return in_chunks(self._by_patches, each, *chain.from_iterable(pairs))

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
        """`squared_outer` of the patches of x and g, or of g and x if the convolution is transposed."""
        layer, pairs = self._layer, list(zip(tensors[::2], tensors[1::2], strict=True))
        # Copies are quickest in long runs: along the channels of neighbouring pixels, or along the positions of a row.
        run = layer.weight.shape[1] * (layer.kernel_size[-1] if layer.dilation[-1] == 1 else 1)
        by_channels = max(layer.kernel_size) > 1 and run > pairs[0][1].shape[-1]
        cut = [self._patches(x, y.shape[2:], by_channels) for x, y in pairs]
        outs = [y.reshape(len(y) * layer.groups, -1, prod(y.shape[2:])).mT for _, y in pairs]
        return squared_outer(_beside(cut), _beside(outs))

    def _patches(self, x: Tensor, positions: Sequence[int], by_channels: bool) -> Tensor:
        """The patch at each position, shape (n groups, positions, in / groups * kernel).

        Args:
            x: the input.
            positions: positions along each dimension.
            by_channels: True if a patch has the channels of a pixel side by side. All uses need the same order.
        """
        layer = self._layer
        x, padding = self._padded(x)
        n, channels, *size = x.shape
        if by_channels:
            grouped = x.reshape(n * layer.groups, -1, *size)
            padded = x.new_zeros(n * layer.groups, *_longer(size, padding), channels // layer.groups)
            inside = [slice(p, p + s) for p, s in zip(padding, size, strict=True)]
            padded[(slice(None), *inside)] = grouped.movedim(1, -1)
            example, *along, channel = padded.stride()
            order = (len(padded), *positions, *layer.kernel_size, padded.shape[-1])
            strides = (example, *_times(along, layer.stride), *_times(along, layer.dilation), channel)
            return padded.as_strided(order, strides).reshape(len(padded), prod(positions), -1)
        if any(padding):
            x = F.pad(x, [p for each in reversed(padding) for p in (each, each)])
        example, channel, *along = x.stride()
        order = (n, channels, *layer.kernel_size, *positions)
        strides = (example, channel, *_times(along, layer.dilation), *_times(along, layer.stride))
        return x.as_strided(order, strides).reshape(n * layer.groups, -1, prod(positions)).mT

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input, padded if the padding is not a number of zeros, and the zeros that are left to add."""
        layer = self._layer
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            return x, layer.padding
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * len(layer.kernel_size)

    def _gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The weight's gradient."""
        layer, (x, padding) = self._layer, self._padded(x)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            g, x, layer.weight.to(x.dtype), None, layer.stride, padding, layer.dilation,
            self._transposed, layer.output_padding, layer.groups, [False, True, False],
        )  # fmt: skip
        return cast(Tensor, gradient)


def _longer(size: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [s + 2 * p for s, p in zip(size, padding, strict=True)]


def _times(strides: Sequence[int], steps: Sequence[int]) -> list[int]:
    return [stride * step for stride, step in zip(strides, steps, strict=True)]


def _beside(uses: Sequence[Tensor]) -> Tensor:
    """The uses, joined along the positions. Copies only if there are several."""
    return torch.cat(list(uses), 1) if len(uses) > 1 else uses[0]
