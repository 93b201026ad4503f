"""Squared norms from gradients of equally large batches at the same weights: two halves of a batch, or many batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model import BatchLoss, batch_length, has_batch_norm, preserved, slice_batch, trainable
from ..types import SquaredNorms
from .mean_gradient import Gradient, MeanGradient, dense, squared_norm
from .views import View


class GradientPool:
    """Gradients of n batches of b samples each, at the same weights: b, mean |g|^2, n b, |mean g|^2.

    That pools all pairs: |mean g|^2 n^2 is the sum of every g_i . g_j, so the |G|^2 that comes of it is the mean of
    g_i . g_j over all i != j, while only one sum of gradients is kept.

    Args:
        size: b, samples of each batch.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._sum: list[Tensor | None] = []
        self._squares: Tensor | float = 0.0

    def add(self, gradient: Gradient) -> None:
        """Take in the gradient of one more batch; None stands for a parameter that the loss did not reach."""
        self._squares = self._squares + squared_norm(gradient)
        self._sum = [_plus(s, g) for s, g in zip(self._sum, gradient, strict=True)] if self._count else list(gradient)
        self._count += 1

    def norms(self) -> SquaredNorms:
        """The four numbers; needs at least two gradients."""
        if self._count < 2:
            raise ValueError(f"{self._count} gradient(s): noise shows only between two or more")
        mean_square = self._squares / self._count
        square_of_mean = squared_norm(self._sum) / self._count**2
        return SquaredNorms(self._size, mean_square, self._count * self._size, square_of_mean)


class HalfBatches:
    """Measures on the two halves of a batch, in passes of its own that leave training as if they had not been.

    `.grad`, buffers and random states are as before; the halves see the same weights.

    Args:
        views: of the gradients, to be measured as well.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss, views: Mapping[str, View] | None = None) -> None:
        self._model, self._batch_loss, self._views = model, batch_loss, views or {}
        self.mean_gradient = MeanGradient(batch_loss)

    def measure(self, batch: Any) -> SquaredNorms | None:
        """The four numbers, on the device; None where the batch is too short to be halved."""
        half = batch_length(batch) // 2
        if half < (2 if has_batch_norm(self._model) else 1):
            return None
        with preserved(self._model):  # (an odd sample out is not measured, so that both halves are alike)
            halves = [self.mean_gradient(self._model, slice_batch(batch, start, start + half)) for start in (0, half)]
        filled = _filled(*halves)
        looks = {name: view(trainable(self._model)) for name, view in self._views.items()}
        seen = {name: [look(gradient) for gradient in filled] for name, look in looks.items() if look}
        views = {name: _pooled(half, gradients) for name, gradients in seen.items() if not _empty(gradients)}
        return replace(_pooled(half, filled), views=views)


def _pooled(size: int, gradients: Sequence[Gradient]) -> SquaredNorms:
    pool = GradientPool(size)
    for gradient in gradients:
        pool.add(gradient)
    return pool.norms()


def _filled(a: Gradient, b: Gradient) -> list[Gradient]:
    """Both with zeros for a parameter that only the other reached, as a branch of the model that few samples take."""
    return [
        [torch.zeros_like(h) if g is None and h is not None else g for g, h in zip(*pair, strict=True)]
        for pair in ((a, b), (b, a))
    ]


def _empty(gradients: Sequence[Gradient]) -> bool:
    return all(g is None for gradient in gradients for g in gradient)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return dense(a) + dense(b)
