"""The slow obvious ways to squared gradient norms, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptbs.model.batches import slice_batch

Loss = Callable[[nn.Module, Any], Tensor]


def in_double(value: Any) -> Any:
    """A model, or a nested batch, with its floating-point numbers in double precision; a copy."""
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: in_double(v) for k, v in value.items()}
    return type(value)(in_double(v) for v in value) if isinstance(value, (list, tuple)) else value


def gradient(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Of the loss of one batch by `.backward()`, flat; 0 where the loss does not reach a parameter."""
    model = in_double(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    loss(model, in_double(batch)).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def rows(model: nn.Module, loss: Loss, batch: Any, n: int) -> Tensor:
    """One gradient a row of the batch, each alone; shape (n, parameters)."""
    return torch.stack([gradient(model, loss, slice_batch(batch, i, i + 1)) for i in range(n)])


def halves(model: nn.Module, loss: Loss, batch: Any, n: int) -> tuple[float, float]:
    """mean |G_b|^2 of the two halves, and the squared norm of their mean."""
    cut = n // 2
    first, second = (gradient(model, loss, slice_batch(batch, i, i + cut)) for i in (0, cut))
    small = (first.square().sum() + second.square().sum()) / 2
    return small.item(), ((first + second) / 2).square().sum().item()


def per_example(model: nn.Module, loss: Loss, batch: Any, n: int) -> tuple[float, float]:
    """mean |g_i|^2 over the rows, and |G|^2 of the whole batch."""
    small = rows(model, loss, batch, n).square().sum(1).mean()
    return small.item(), gradient(model, loss, batch).square().sum().item()
