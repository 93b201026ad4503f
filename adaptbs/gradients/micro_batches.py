"""Squared norms from gradients of equally large batches at the same weights: two halves of a batch, or many batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..left_as_found import left_as_found
from ..types import SquaredNorms
from . import batches
from .batch_loss import BatchLoss

Gradient = Sequence[Tensor | None]


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
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self.mean_gradient = MeanGradient(batch_loss)

    def measure(self, batch: Any) -> SquaredNorms | None:
        """The four numbers, on the device; None where the batch is too short to be halved."""
        half = batches.length(batch) // 2
        if half < (2 if _has_batch_norm(self._model) else 1):
            return None
        pool = GradientPool(half)
        with left_as_found(self._model):
            for start in (0, half):  # an odd sample out is not measured, so that both halves are alike
                pool.add(self.mean_gradient(self._model, batches.part(batch, start, start + half)))
        return pool.norms()


class MeanGradient:
    """The gradient of the mean loss of a batch, also where the loss function sums over it.

    A sum's gradient is n times the mean's. Which of the two a loss is, it says itself (`.reduction`), or it shows on
    the first batch: the losses of two halves add up to one whole of a sum, and to two of a mean.
    """

    def __init__(self, batch_loss: BatchLoss) -> None:
        self._batch_loss = batch_loss
        self._sums: bool | None = {"sum": True, "mean": False}.get(batch_loss.reduction or "")

    def __call__(self, model: nn.Module, batch: Any) -> list[Tensor | None]:
        if self._sums is None:
            self._sums = self._shows_a_sum(model, batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad():
            loss = self._batch_loss(model, batch).reshape(())
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not self._sums:
            return list(gradient)
        return [g / batches.length(batch) if g is not None else None for g in gradient]

    def _shows_a_sum(self, model: nn.Module, batch: Any) -> bool | None:
        """Whether two halves add up to one whole rather than two; None, to be asked again, where the loss is 0 or nan.

        Exact for a sum; for a mean up to what dropout and BatchNorm add, so the nearer of the two is taken.
        """
        n = batches.length(batch)
        if n < (4 if _has_batch_norm(model) else 2):  # (BatchNorm refuses a half of one sample)
            return None
        with torch.no_grad(), left_as_found(model):
            parts = (batch, batches.part(batch, 0, n // 2), batches.part(batch, n // 2, n))
            whole, *halves = (self._batch_loss(model, part).item() for part in parts)
        ratio = sum(halves) / whole if whole else float("nan")
        return abs(ratio - 1) < abs(ratio - 2) if math.isfinite(ratio) else None


def squared_norm(gradient: Gradient) -> Tensor:
    """|g|^2 over all parameters, at least in float32: half precision overflows at 65,504."""
    present = [_dense(g) for g in gradient if g is not None]
    if not present:
        raise ValueError("the loss depends on no trainable parameter: check requires_grad and loss_func")
    return get_total_norm(present).square()


def _dense(g: Tensor) -> Tensor:
    g = g.to_dense() if g.is_sparse else g
    return g.float() if g.dtype in (torch.float16, torch.bfloat16) else g


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return _dense(a) + _dense(b)


def _has_batch_norm(model: nn.Module) -> bool:
    # (its common base class, so that lazy and synchronised kinds count)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
