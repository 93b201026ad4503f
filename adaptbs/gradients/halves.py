"""Squared norms from gradients of equally large batches at the same weights: two halves of a batch, or n batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..model import BatchLoss, batch_length, has_batch_norm, trainable
from ..types import SquaredNorms
from .mean_gradient import Gradient, MeanGradient, dense, gradient_bytes, squared_norm, together
from .views import Group, View, bytes_of_views

TEMPORARY = 3  # number of temporary tensors of a measurement, each as large as the largest parameter's gradient


class GradientPool:
    """Squared norms from the mean gradients g_1 ... g_n of n batches of b samples each, at the same weights.

    small = mean |g_i|^2 at b samples, large = |mean g_i|^2 at n b samples. With them `SquaredNorms` gives

        |G|^2     = (n large - small)/(n - 1) = mean of g_i . g_j over all i != j
        tr(Sigma) = b n/(n - 1) (small - large) = b times the sample variance of the g_i

    Both are unbiased if the batches are independent: then E g_i . g_j = |G|^2 for i != j, and the variance of g_i is
    tr(Sigma)/b. All pairs are used, but only one sum of gradients is kept.

    Args:
        size: b, samples of each batch.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._sum: list[Tensor | None] = []
        self._squares: Tensor | float = 0.0

    def add(self, gradient: Gradient) -> None:
        """Add the mean gradient of one more batch. None stands for a parameter that the loss does not depend on."""
        self._squares = self._squares + squared_norm(gradient)
        self._sum = [_plus(s, g) for s, g in zip(self._sum, gradient, strict=True)] if self._count else list(gradient)
        self._count += 1

    def norms(self) -> SquaredNorms:
        """Squared norms of the gradients so far. Raises ValueError if there are fewer than two."""
        if self._count < 2:
            raise ValueError(f"{self._count} gradient(s): noise needs at least two, add() one for each batch")
        mean_square = self._squares / self._count
        square_of_mean = squared_norm(self._sum) / self._count**2
        return SquaredNorms(self._size, mean_square, self._count * self._size, square_of_mean)


class HalfBatches:
    """Squared norms from the gradients g_1, g_2 of the two halves of a batch, in two passes of its own.

    With b samples in each half, small = (|g_1|^2 + |g_2|^2)/2 and large = |(g_1 + g_2)/2|^2. So |G|^2 = g_1 . g_2 and
    tr(Sigma) = b |g_1 - g_2|^2/2, unbiased because the halves are independent samples at the same weights. This is
    `GradientPool` with n = 2. `.grad`, buffers and random states are restored.

    Args:
        model: the model.
        batch_loss: its loss on a batch.
        views: views of the gradients to measure as well, by name.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss, views: Mapping[str, View] | None = None) -> None:
        self._model, self._batch_loss, self._views = model, batch_loss, views or {}
        self.mean_gradient = MeanGradient(batch_loss)

    @property
    def outside(self) -> list[str]:
        """Names of the views of parameter groups that hold no parameter of the model. They are not measured."""
        return [name for name, view in self._views.items() if isinstance(view, Group) and view.is_outside(self._model)]

    @property
    def bytes_beside_step(self) -> int:
        """Bytes that a measurement may hold beyond what a step on the whole batch does.

        At its end both gradients are held where a step holds one, and a few temporary tensors as large as one
        parameter's gradient.
        """
        parameters = trainable(self._model)
        whole, largest = gradient_bytes(parameters)
        views = bytes_of_views(self._views.values(), sum(4 * p.numel() for p in parameters))
        return 2 * whole + views + TEMPORARY * largest - sum(p.numel() * p.element_size() for p in parameters)

    @property
    def fewest(self) -> int:
        """Samples of the shortest batch that can be halved. BatchNorm takes no half of one sample."""
        return 4 if has_batch_norm(self._model) else 2

    def measure(self, batch: Any, samples: int | None = None) -> SquaredNorms | None:
        """Squared norms, on the device; None if the batch is shorter than `fewest`.

        An odd last sample is left out, so that both halves have the same size.

        Args:
            batch: a batch of 2 b or 2 b + 1 samples.
            samples: the number of its samples. None: read from its layout.

        Raises:
            NotCutError: if it is not certain which entries belong to which sample.
        """
        half = (batch_length(batch) if samples is None else samples) // 2
        if 2 * half < self.fewest:
            return None
        with self._batch_loss.preserving(self._model):
            parts = [self._batch_loss.split(batch, start, start + half) for start in (0, half)]
            halves = [self.mean_gradient(self._model, part, samples and half) for part in parts]
        looks = {name: view(trainable(self._model)) for name, view in self._views.items()}
        seen = {name: (look(halves[0]), look(halves[1])) for name, look in looks.items() if look}
        views = {name: pooled(half, *pair) for name, pair in seen.items() if any(g is not None for g in chain(*pair))}
        return replace(pooled(half, *halves), views=views)


def pooled(size: int, first: Gradient, second: Gradient) -> SquaredNorms:
    """Squared norms from the mean gradients g_1, g_2 of two halves of `size` samples, without a third gradient.

    |g_1 + g_2|^2 = |g_1|^2 + |g_2|^2 + 2 g_1 . g_2, added up parameter by parameter. None counts as zero: a branch of
    the model that few samples take may have a gradient in one half only.

    Raises:
        ValueError: if no parameter has a gradient in either half.
    """
    squares = [squared_norm(gradient) for gradient in (first, second) if any(g is not None for g in gradient)]
    products = [inner_product(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    both = together(squares).sum() if squares else squared_norm(first)
    whole = both + 2 * together(products).sum().to(both.device) if products else both
    return SquaredNorms(size, both / 2, 2 * size, whole / 4)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two gradients of one parameter, real or complex."""
    a, b = dense(a), dense(b)
    return (
        (torch.view_as_real(a) * torch.view_as_real(b)).sum()
        if a.is_complex()
        else torch.vdot(a.flatten(), b.flatten())
    )


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return dense(a) + dense(b)
