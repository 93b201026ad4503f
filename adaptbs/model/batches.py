"""Nested batches (tuples, dicts, dataclasses ... of tensors): measure, slice, concatenate, move to a device."""

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

from .layouts import doubt_of, length_of_tensor

SHOWN = 8  # entries of a list in a message


def batch_length(batch: Any) -> int:
    """Number of samples, the first dimension of the first tensor. Raises TypeError if no tensor has a dimension.

    If that tensor lies in a list, the list may hold a tensor for each sample, as detection has them. It does if every
    entry of the batch is as long as the list, and not as long as the tensor.
    """
    # Asked for every batch, nearly all of which are tensors side by side: these have no list inside.
    entries = list(batch.values()) if isinstance(batch, Mapping) else batch
    is_plain = isinstance(entries, (list, tuple)) and not [item for item in entries if not isinstance(item, Tensor)]
    for tensor in entries if is_plain else _tensors(batch):
        if tensor.dim():
            n = int(tensor.size(0))
            listed = None if is_plain else _list_of_first(batch)
            if listed is None or len(listed) == n or doubt_of(batch, n) is None or doubt_of(batch, len(listed)):
                return n
            return len(listed)
    raise TypeError(
        f"no tensor with a batch dimension in a batch of type {type(batch).__name__}, so its size is unknown. "
        "Make collate_fn= return a tensor, or a tuple, list, dict or dataclass of tensors; or give "
        "split=(batch, start, stop) -> batch, a function that returns the samples start:stop of a batch"
    )


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Samples start:stop of the batch. Slices whatever has one entry a sample and passes on the rest unchanged.

    Tensors, arrays and lists that are as long as the batch have one entry a sample. Such a list may hold lengths,
    texts, or tensors that differ in size. A tuple that long is sliced only if it holds texts, as PyTorch collates them.
    A tuple of numbers is more likely to be a shape.
    """
    n = batch_length(batch)
    return _map(lambda item: item[start:stop], batch, lambda item: _has_rows(item, n))


def concat_batches(batches: Sequence[Any]) -> Any:
    """Concatenate batches of the same layout. Anything that `slice_batch` would not slice comes from the first batch.

    Raises:
        RuntimeError, ValueError: if shapes do not match, as those of texts padded to different lengths.
    """
    rest = [iter(_rows(batch)) for batch in batches[1:]]
    n = batch_length(batches[0])
    return _map(lambda item: _concatenated([item, *map(next, rest)]), batches[0], lambda item: _has_rows(item, n))


def repeat_batch(batch: Any, n: int) -> Any:
    """A batch of n samples, made by repeating the samples of this one."""
    copies = -(-n // batch_length(batch))
    return slice_batch(concat_batches([batch] * copies) if copies > 1 else batch, 0, n)


def batch_bytes(batch: Any) -> int:
    """Memory of the batch's tensors, bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(batch))


def describe_batch(batch: Any) -> str:
    """The layout of a batch with the shapes of its tensors, such as `(float32 [16, 8], int64 [16])`."""
    if isinstance(batch, Tensor):
        shape = f"nested [{length_of_tensor(batch)}, ...]" if batch.is_nested else list(batch.shape)
        return f"{str(batch.dtype).removeprefix('torch.')} {shape}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe_batch(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        shown = [describe_batch(item) for item in batch[:SHOWN]] + ["..."] * (len(batch) > SHOWN)
        return f"({', '.join(shown)})"
    return type(batch).__name__


def to_device(batch: Any, device: Device) -> Any:
    """The batch with its tensors on `device`. The given batch is not changed."""
    return _map(lambda t: t.to(device, non_blocking=True), batch, lambda item: isinstance(item, Tensor))


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of a batch; none where its layout is not known."""
    try:
        return _tensors(batch)
    except TypeError:  # it holds a PackedSequence
        return []


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, PackedSequence):
        raise TypeError(
            "a PackedSequence stores its samples time step by time step, so it cannot be sliced by sample: "
            "let collate_fn= return batches padded, with their lengths, and pack them in the model or in batch_loss="
        )
    if isinstance(batch, Tensor):
        return [batch]
    if type(batch) is tuple or type(batch) is list:  # as most are, at every step
        found = []
        for item in batch:
            found += [item] if isinstance(item, Tensor) else _tensors(item)
        return found
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif _is_record(batch):
        batch = list(_entries(batch).values())
    return [t for item in batch for t in _tensors(item)] if isinstance(batch, (list, tuple)) else []


def _list_of_first(batch: Any) -> list[Any] | None:
    """The list inside a batch that the first tensor with a dimension is in; None if it is in none."""
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif _is_record(batch):
        batch = _entries(batch).values()
    elif not isinstance(batch, (list, tuple)):
        return None
    for item in batch:
        if any(tensor.dim() for tensor in _tensors(item)):
            return item if isinstance(item, list) else _list_of_first(item)
    return None


def _rows(batch: Any) -> list[Any]:
    """All items with one entry a sample, in order."""
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
    """True if the item holds one entry for each of n samples."""
    if isinstance(item, Tensor):
        return item.ndim > 0 and length_of_tensor(item) == n
    if isinstance(item, np.ndarray):
        return item.ndim > 0 and item.shape[0] == n
    if isinstance(item, list):
        # If every tensor is as long as the batch, the list holds several inputs, even if there happen to be n of them.
        return len(item) == n and not (n and all(isinstance(i, Tensor) and _has_rows(i, n) for i in item))
    return isinstance(item, tuple) and len(item) == n and all(isinstance(i, str) for i in item)


def _map(function: Callable[[Any], Any], batch: Any, at: Callable[[Any], bool], inside: bool = False) -> Any:
    """Apply `function` to every item for which `at` is true, and keep the layout.

    A list or tuple that is the whole batch always counts as layout, even if `at` is true of it.
    """
    if _is_record(batch):
        made = copy.copy(batch)
        for name, value in _entries(batch).items():
            # The dataclass may be frozen, so setattr would fail.
            object.__setattr__(made, name, _map(function, value, at, inside=True))
        return made
    if at(batch) and (inside or not isinstance(batch, (list, tuple))):
        return function(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    mapped = [_map(function, value, at, inside=True) for value in values]
    if isinstance(batch, Mapping):
        # Keep the type where possible: Hugging Face's batches are also read by attribute.
        made = copy.copy(batch) if isinstance(batch, (dict, UserDict)) else dict(batch)
        made.update(zip(batch, mapped, strict=True))
        return made
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a namedtuple's constructor takes its fields one by one
        return type(batch)(*mapped)
    return type(batch)(mapped) if isinstance(batch, (list, tuple)) else batch


def _is_record(batch: Any) -> bool:
    """True for an instance of a dataclass. Hugging Face's outputs are also dicts, and are treated as dicts."""
    return is_dataclass(batch) and not isinstance(batch, (type, Mapping))


def _entries(batch: Any) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch) if hasattr(batch, field.name)}
