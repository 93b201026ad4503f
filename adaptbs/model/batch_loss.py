"""One scalar loss from a model and a batch, however the batch is laid out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .batches import batch_length, to_device
from .preserve import preserved


class BatchLoss:
    """`loss_func(model(*inputs), target)` on a batch `(*inputs, target)`, or `batch_loss(model, batch)`.

    Args:
        loss_func: of a prediction and a target; mean over the batch (or sum, which is noticed).
        batch_loss: (model, batch) -> scalar, for any other layout. Give one of the two.
        autocast: makes the context the forward pass runs under, such as `lambda: torch.autocast("cuda")`.
    """

    def __init__(
        self,
        loss_func: Callable[..., Tensor] | None = None,
        batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        if (loss_func is None) == (batch_loss is None):
            raise ValueError(
                "give either loss_func=, called as loss_func(model(*inputs), target) on a batch (*inputs, target), "
                "or batch_loss=, called as batch_loss(model, batch)"
            )
        for name, function in (("loss_func", loss_func), ("batch_loss", batch_loss)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}={function!r}: it must be a function")
        self._loss_func, self._batch_loss = loss_func, batch_loss
        self._autocast = autocast or nullcontext

    @property
    def reduction(self) -> str | None:
        """How the loss function itself says it treats the batch: "mean", "sum", or None where it does not say."""
        reduction = getattr(self._loss_func, "reduction", None)
        return reduction if reduction in ("mean", "sum") else None

    def weight(self, model: nn.Module, batch: Any) -> float:
        """What the mean loss of a batch is a mean over: its samples, or what a loss with weights and targets to be
        ignored counts of them, which the sum over the mean tells."""
        sums = summing(self._loss_func)
        if sums is None:
            return float(batch_length(batch))
        with torch.no_grad(), preserved(model):
            mean, total = self(model, batch), BatchLoss(sums, autocast=self._autocast)(model, batch)
        return (total / mean).item() if total else 0.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of the whole batch, a tensor of one element, on the model's device."""
        parameter = next(model.parameters(), None)
        if parameter is not None:
            batch = to_device(batch, parameter.device)
        with self._autocast():
            loss = self._batch_loss(model, batch) if self._batch_loss else self._of_layout(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be one number for the whole batch, got {got}: reduce it to its mean")
        return loss

    def _of_layout(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) < 2:
            raise TypeError(
                f"loss_func= needs batches laid out as (*inputs, target), got {type(batch).__name__}: "
                "give batch_loss=(model, batch) -> scalar instead"
            )
        *inputs, target = batch
        assert self._loss_func is not None
        return self._loss_func(model(*inputs), target)


def summing(loss_func: Any) -> Any:
    """A copy that sums where this one takes a mean over something else than samples, as weighted and ignored targets
    make it do; None for others. fastai's losses have the one they flatten for as `.func`."""
    inner = getattr(loss_func, "func", loss_func)
    if getattr(loss_func, "reduction", None) != "mean" or not hasattr(inner, "ignore_index"):
        return None
    sums = copy.deepcopy(loss_func)
    sums.reduction = "sum"
    return sums
