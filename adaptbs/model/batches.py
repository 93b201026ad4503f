"""Nested batches (tuples, dicts, dataclasses ... of tensors): their length, a slice, several as one, on a device."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import device as Device
from torch.nn.utils.rnn import PackedSequence


def batch_length(batch: Any) -> int:
    """The number of samples: the first dimension of the first tensor. Raises TypeError where there is none."""
    for tensor in _tensors(batch):
        if tensor.dim():
            return int(tensor.shape[0])
    raise TypeError(
        f"no tensor with a batch dimension in a batch of type {type(batch).__name__}: its size is unknown. "
        "Let collate_fn= make a tensor, or a tuple, list, dict or dataclass of them"
    )


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Samples start..stop: whatever holds one entry a sample is sliced, anything else goes along whole.

    Those are tensors and arrays as long as the batch, and lists of as many things: lengths, texts, or tensors that
    differ in size. A tuple as long only if it holds texts, as PyTorch collates them: of numbers it is rather a shape.
    """
    n = batch_length(batch)
    return _map(lambda item: item[start:stop], batch, lambda item: _has_rows(item, n))


def concat_batches(batches: Sequence[Any]) -> Any:
    """One batch of the samples of several alike; what `slice_batch` would not slice is taken from the first.

    Raises RuntimeError or ValueError where they do not fit together, as texts padded to different lengths do not.
    """
    rest = [iter(_rows(batch)) for batch in batches[1:]]
    n = batch_length(batches[0])
    return _map(lambda item: _concatenated([item, *map(next, rest)]), batches[0], lambda item: _has_rows(item, n))


def repeat_batch(batch: Any, n: int) -> Any:
    """A batch of n samples: those of this one, over and over."""
    copies = -(-n // batch_length(batch))
    return slice_batch(concat_batches([batch] * copies) if copies > 1 else batch, 0, n)


def batch_bytes(batch: Any) -> int:
    """What its tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(batch))


def to_device(batch: Any, device: Device) -> Any:
    """The batch with its tensors on `device`; the batch itself is not changed."""
    return _map(lambda t: t.to(device, non_blocking=True), batch, lambda item: isinstance(item, Tensor))


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, PackedSequence):
        raise TypeError(
            "a PackedSequence holds its samples time step by time step, so they cannot be told apart: "
            "let batches be padded, with their lengths, and pack them in the model or in batch_loss="
        )
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif _is_record(batch):
        batch = list(_entries(batch).values())
    return [t for item in batch for t in _tensors(item)] if isinstance(batch, (list, tuple)) else []


def _rows(batch: Any) -> list[Any]:
    """All that holds one entry a sample, in order."""
    found: list[Any] = []

    def take(item: Any) -> Any:
        found.append(item)
        return item

    n = batch_length(batch)
    _map(take, batch, lambda item: _has_rows(item, n))
    return found


def _concatenated(items: list[Any]) -> Any:
    if isinstance(items[0], Tensor):
        return torch.cat(items)
    if isinstance(items[0], np.ndarray):
        return np.concatenate(items)
    return type(items[0])(entry for item in items for entry in item)


def _has_rows(item: Any, n: int) -> bool:
    """Whether it holds one entry for each of n samples."""
    if isinstance(item, (Tensor, np.ndarray)):
        return item.ndim > 0 and item.shape[0] == n
    if isinstance(item, list):
        # A list of tensors that are all as long as the batch holds several inputs, even if it has n of them.
        return len(item) == n and not (n and all(isinstance(i, Tensor) and _has_rows(i, n) for i in item))
    return isinstance(item, tuple) and len(item) == n and all(isinstance(i, str) for i in item)


def _map(function: Callable[[Any], Any], batch: Any, at: Callable[[Any], bool], inside: bool = False) -> Any:
    """The same layout with `function` of every part that `at` is true of; a list or tuple on its own is a layout."""
    if _is_record(batch):
        made = copy.copy(batch)
        for name, value in _entries(batch).items():
            object.__setattr__(made, name, _map(function, value, at, inside=True))  # (it may be a frozen one)
        return made
    if at(batch) and (inside or not isinstance(batch, (list, tuple))):
        return function(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    mapped = [_map(function, value, at, inside=True) for value in values]
    if isinstance(batch, Mapping):
        # Of the same kind if it can be: Hugging Face's batches are also read by attribute.
        made = copy.copy(batch) if isinstance(batch, (dict, UserDict)) else dict(batch)
        made.update(zip(batch, mapped, strict=True))
        return made
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a namedtuple takes its fields one by one
        return type(batch)(*mapped)
    return type(batch)(mapped) if isinstance(batch, (list, tuple)) else batch


def _is_record(batch: Any) -> bool:
    """Whether it is a dataclass; those of Hugging Face that are dicts too are dicts."""
    return is_dataclass(batch) and not isinstance(batch, (type, Mapping))


def _entries(batch: Any) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch) if hasattr(batch, field.name)}
