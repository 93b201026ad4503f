"""The gradient of a batch's mean loss, and its squared norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import device as Device

from ..model import NO_GRADIENT, BatchLoss, NotCutError, batch_length, has_batch_norm, trainable, without_chance
from .backward import Graph
from .loss_scale import LossScale

HALF = (torch.float16, torch.bfloat16)
Gradient = Sequence[Tensor | None]


class MeanGradient:
    """The gradient of the mean loss of a batch, also if the loss function sums over the batch.

    The gradient of a sum over n samples is n times that of the mean, so it is divided by n. The loss function says
    itself which of the two it is (`.reduction`), or the first batch shows it (`shows_a_sum`).

    In float16 small gradients would vanish, so such a loss is scaled before its backward pass (`LossScale`). If that
    overflows, the gradient is not finite, and the next loss is scaled by less.

    Args:
        batch_loss: the loss of a model on a batch.

    Attributes:
        sums: True if the loss sums over the batch, False if it takes the mean, None while that is not known.
        scale: loss scale inside the latest backward pass; None if there was none. Returned gradients are divided by it.
    """

    def __init__(self, batch_loss: BatchLoss) -> None:
        self._batch_loss = batch_loss
        self._loss_scale = LossScale()
        self.sums: bool | None = {"sum": True, "mean": False}.get(batch_loss.reduction or "")
        self.scale: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any, samples: int | None = None) -> list[Tensor | None]:
        if self.sums is None:
            self.sums = shows_a_sum(model, self._batch_loss, batch, samples)
        parameters = trainable(model)
        with torch.enable_grad():
            loss = self._batch_loss(model, batch).reshape(())
        if not loss.requires_grad:
            return [None] * len(parameters)  # as where only a part of the model takes these samples
        graph = Graph(loss)
        self.scale = self._loss_scale.on(loss.device) if graph.in_half else None
        gradient = list(graph.gradient(parameters, self.scale))
        if self.scale is not None:
            scale = self.scale
            _replace_each(gradient, lambda g: dense(g) / scale.to(g.device))
            # If the loss itself is not finite, the scale is not to blame.
            self._loss_scale.update(loss.isfinite() & ~squared_norm(gradient).isfinite().to(loss.device))
        gradient = _not_finite_if(loss.detach(), gradient)
        if self.sums:
            n = batch_length(batch) if samples is None else samples
            _replace_each(gradient, lambda g: g / n)
        return gradient

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "loss_scale": self._loss_scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"]
        self._loss_scale.load_state_dict(state["loss_scale"])


def shows_a_sum(model: nn.Module, batch_loss: BatchLoss, batch: Any, samples: int | None = None) -> bool | None:
    """True if the loss sums over the batch, False if it takes the mean, None if this batch does not show it.

    The loss's own `.reduction` decides. Without it the losses of two halves of the batch do: they add up to once the
    whole loss for a sum, and to twice the whole loss for a mean. Dropout and BatchNorm are switched off meanwhile,
    because in a few samples their effect could look like that difference. Other layers may still add noise, so the
    nearer of once and twice is taken. A loss of 0 or nan shows nothing, nor does a batch that cannot be cut. Try again
    with another batch.
    """
    said = {"sum": True, "mean": False}.get(batch_loss.reduction or "")
    if said is not None:
        return said
    n = batch_length(batch) if samples is None else samples
    if n < (4 if has_batch_norm(model) else 2):  # BatchNorm raises an error on a half of one sample
        return None
    try:
        slices = (batch, batch_loss.split(batch, 0, n // 2), batch_loss.split(batch, n // 2, n))
    except NotCutError:
        return None
    losses = []
    for each in slices:
        # Each from the same state, such as a codebook's that every pass moves. Gradients are enabled because a
        # checkpoint warns without them.
        with torch.enable_grad(), without_chance(model), batch_loss.preserving(model):
            losses.append(batch_loss(model, each).item())
    whole, *halves = losses
    ratio = sum(halves) / whole if whole else float("nan")
    return abs(ratio - 1) < abs(ratio - 2) if math.isfinite(ratio) else None


def _replace_each(gradient: list[Tensor | None], function: Callable[[Tensor], Tensor]) -> None:
    """Apply the function to each tensor in place of it, one by one, so that two whole gradients are never held."""
    for i in range(len(gradient)):
        if (g := gradient[i]) is not None:
            gradient[i] = function(g)
        del g


def _not_finite_if(loss: Tensor, gradient: list[Tensor | None]) -> list[Tensor | None]:
    """Make the gradient nan if the loss is not finite.

    If all targets of a batch are ignored, the loss is nan, but autograd's gradient is 0.
    """
    present = [g for g in gradient if g is not None]
    smallest = min(present, key=Tensor.numel, default=None)  # one nan tensor makes the norm nan; this is the cheapest
    if smallest is None:
        return gradient
    shown = dense(smallest) + (0 * loss).to(smallest.device)
    return [shown if g is smallest else g for g in gradient]


def squared_norm(gradient: Gradient) -> Tensor:
    """|g|^2 over all parameters, in float32 or better since float16 overflows at 65,504.

    Raises:
        ValueError: if no parameter has a gradient.
    """
    present = [g.to_dense() if g.is_sparse else g for g in gradient if g is not None]
    if not present:
        raise ValueError(NO_GRADIENT)
    kinds: dict[tuple[Device, torch.dtype], list[Tensor]] = {}
    for g in present:
        kinds.setdefault((g.device, g.dtype), []).append(g)
    # The norms are added up in float32 without a copy of the gradient in float32, which would be as large as two of it.
    sizes = [
        torch.stack(torch._foreach_norm(those, 2, torch.float32 if dtype in HALF else None)).square().sum()
        for (_, dtype), those in kinds.items()
    ]
    return sizes[0] if len(sizes) == 1 else together(sizes).sum()


def gradient_bytes(parameters: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes of a `MeanGradient`, and of the largest parameter's part of it in float32 or better."""
    sizes = [p.numel() * (4 if p.dtype == torch.float16 else p.element_size()) for p in parameters]
    return sum(sizes), max((p.numel() * max(p.element_size(), 4) for p in parameters), default=0)


def square(g: Tensor) -> Tensor:
    """Squared norm of one parameter's gradient, real or complex."""
    g = dense(g.detach())
    return (torch.view_as_real(g) if g.is_complex() else g).square().sum()


def together(scalars: Sequence[Tensor]) -> Tensor:
    """Stack scalars on the first one's device. A model may be spread over several devices."""
    return torch.stack([s.to(scalars[0].device) for s in scalars])


def dense(g: Tensor) -> Tensor:
    """The gradient as a dense tensor. Half precision becomes float32."""
    g = g.to_dense() if g.is_sparse else g
    return g.float() if g.dtype in HALF else g
