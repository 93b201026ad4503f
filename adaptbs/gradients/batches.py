"""Nested batches (tuples, lists, dicts of tensors): how many samples, a slice of them, on another device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch import device as Device


def length(batch: Any) -> int:
    """The number of samples: the first dimension of the first tensor. Raises TypeError where there is none."""
    for tensor in _tensors(batch):
        if tensor.dim():
            return int(tensor.shape[0])
    raise TypeError(f"no tensor with a batch dimension in a batch of type {type(batch).__name__}: its size is unknown")


def part(batch: Any, start: int, stop: int) -> Any:
    """Samples start..stop: every tensor as long as the batch is sliced, anything else goes along whole."""
    n = length(batch)
    return _map(lambda t: t[start:stop] if t.dim() and t.shape[0] == n else t, batch)


def to_device(batch: Any, device: Device) -> Any:
    """The batch with its tensors on `device`; the batch itself is not changed."""
    return _map(lambda t: t.to(device, non_blocking=True), batch)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [t for item in batch for t in _tensors(item)] if isinstance(batch, (list, tuple)) else []


def _map(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a namedtuple takes its fields one by one
        return type(batch)(*(_map(function, value) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_map(function, value) for value in batch)
    return batch
