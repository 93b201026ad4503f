"""The gradient of a batch's mean loss, and its squared norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..model import BatchLoss, batch_length, has_batch_norm, preserved, slice_batch, trainable, without_chance
from .backward import Graph
from .loss_scale import LossScale

Gradient = Sequence[Tensor | None]


class MeanGradient:
    """The gradient of the mean loss of a batch, also where the loss function sums over it.

    A sum's gradient is n times the mean's. Which of the two a loss is, it says itself (`.reduction`), or it shows on
    the first batch: the losses of two halves add up to one whole of a sum, and to two of a mean.

    A loss that went through float16 is scaled on its way back, or small gradients would vanish (`LossScale`). Where
    one overflows after all, the gradient is not finite, and the next is scaled less.

    Attributes:
        sums: whether the loss sums over the batch; None while that is not known.
        scale: what gradients were multiplied by inside the latest pass; what is returned is divided by it.
    """

    def __init__(self, batch_loss: BatchLoss) -> None:
        self._batch_loss = batch_loss
        self._loss_scale = LossScale()
        self.sums: bool | None = {"sum": True, "mean": False}.get(batch_loss.reduction or "")
        self.scale: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any) -> list[Tensor | None]:
        if self.sums is None:
            self.sums = shows_a_sum(model, self._batch_loss, batch)
        parameters = trainable(model)
        with torch.enable_grad():
            loss = self._batch_loss(model, batch).reshape(())
        graph = Graph(loss)
        self.scale = self._loss_scale.on(loss.device) if graph.in_half else None
        gradient = list(graph.gradient(parameters, self.scale))
        if self.scale is not None:
            gradient = [dense(g) / self.scale.to(g.device) if g is not None else None for g in gradient]
            # A loss that is not finite itself tells nothing of the scale.
            self._loss_scale.update(loss.isfinite() & ~squared_norm(gradient).isfinite().to(loss.device))
        gradient = _not_finite_if(loss.detach(), gradient)
        if not self.sums:
            return gradient
        return [g / batch_length(batch) if g is not None else None for g in gradient]

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "loss_scale": self._loss_scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"]
        self._loss_scale.load_state_dict(state["loss_scale"])


def shows_a_sum(model: nn.Module, batch_loss: BatchLoss, batch: Any) -> bool | None:
    """Whether a loss sums over the batch rather than take its mean; None where this batch does not tell.

    It says so itself, or two halves add up to one whole rather than two. What a model adds by chance, or by the batch,
    is switched off for that: with a few samples it could pass for the difference. What some other layer adds remains,
    so the nearer of the two is taken. Where the loss is 0 or nan, it has to be asked again.
    """
    said = {"sum": True, "mean": False}.get(batch_loss.reduction or "")
    if said is not None:
        return said
    n = batch_length(batch)
    if n < (4 if has_batch_norm(model) else 2):  # (BatchNorm refuses a half of one sample)
        return None
    # (Without gradients a checkpoint would warn.)
    with torch.enable_grad(), without_chance(model), preserved(model):
        parts = (batch, slice_batch(batch, 0, n // 2), slice_batch(batch, n // 2, n))
        whole, *halves = (batch_loss(model, part).item() for part in parts)
    ratio = sum(halves) / whole if whole else float("nan")
    return abs(ratio - 1) < abs(ratio - 2) if math.isfinite(ratio) else None


def _not_finite_if(loss: Tensor, gradient: list[Tensor | None]) -> list[Tensor | None]:
    """The gradient, which is made nan where the loss is: of one whose targets are all ignored, autograd's is 0."""
    present = [g for g in gradient if g is not None]
    smallest = min(present, key=Tensor.numel, default=None)  # it is enough for the norm to show it
    if smallest is None:
        return gradient
    shown = dense(smallest) + (0 * loss).to(smallest.device)
    return [shown if g is smallest else g for g in gradient]


def squared_norm(gradient: Gradient) -> Tensor:
    """|g|^2 over all parameters, at least in float32: half precision overflows at 65,504."""
    present = [dense(g) for g in gradient if g is not None]
    if not present:
        raise ValueError("the loss depends on no trainable parameter: check requires_grad and loss_func")
    return get_total_norm(present).square()


def square(g: Tensor) -> Tensor:
    """The squared norm of one parameter's gradient, which may be complex."""
    g = dense(g.detach())
    return (torch.view_as_real(g) if g.is_complex() else g).square().sum()


def together(scalars: Sequence[Tensor]) -> Tensor:
    """In one tensor, also where a model lies on several devices."""
    return torch.stack([s.to(scalars[0].device) for s in scalars])


def dense(g: Tensor) -> Tensor:
    """As a dense tensor of at least single precision."""
    g = g.to_dense() if g.is_sparse else g
    return g.float() if g.dtype in (torch.float16, torch.bfloat16) else g
