"""Tells from the layout of a batch whether it is certain which entries belong to which sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (str, bytes, bool, Number, type(None))


def length_of_tensor(tensor: Tensor) -> int:
    """Length of the first dimension. A nested tensor has no `.shape`, but has that."""
    return int(tensor.size(0))


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor; () for a nested one, whose rows differ in shape."""
    return () if tensor.is_nested else tuple(tensor.shape)


def doubt_of(batch: Any, n: int) -> str | None:
    """The reason why it is not certain which entries of a batch belong to which of n samples; None if it is."""
    return _doubt(batch, n, inside=False)


def _doubt(item: Any, n: int, inside: bool = True) -> str | None:
    if isinstance(item, (Tensor, np.ndarray)):
        return _doubt_of_tensor(item, n)
    if isinstance(item, PLAIN):
        return None
    if isinstance(item, Mapping):
        return _first_doubt(item.values(), n)
    if is_dataclass(item) and not isinstance(item, type):
        return _first_doubt([getattr(item, f.name) for f in fields(item) if hasattr(item, f.name)], n)
    if isinstance(item, list) and inside and len(item) == n:
        if _may_be_inputs(item, n):
            return f"a list of {n} tensors, each {n} long, may hold {n} samples or {n} inputs"
        return None  # an entry a sample, of whatever size
    if isinstance(item, (list, tuple)):
        if inside and item and all(isinstance(entry, str) for entry in item) and len(item) == n:
            return None  # as torch collates texts
        if inside and item and all(_is_value(entry) for entry in item) and not hasattr(item, "_fields"):
            return f"a {type(item).__name__} of {len(item)} values is beside {n} samples"
        return _first_doubt(item, n)
    return f"a {type(item).__name__} does not show its samples"


def _may_be_inputs(entries: list[Any], n: int) -> bool:
    """True if n tensors, each n long, may as well be n inputs as n samples. A batch of one does not tell, nor matter.

    Tensors of different types, such as values and a mask, are inputs.
    """
    if n < 2 or not all(isinstance(entry, Tensor) and entry.ndim and _doubt(entry, n) is None for entry in entries):
        return False
    return len({(entry.dtype, entry.ndim) for entry in entries}) == 1


def _doubt_of_tensor(item: Any, n: int) -> str | None:
    if item.ndim == 0:
        return None
    if isinstance(item, Tensor) and (item.is_nested or item.layout != torch.strided):
        return f"a {'nested' if item.is_nested else 'sparse'} {type(item).__name__} cannot be cut by sample"
    if item.shape[0] == n:
        return None
    return f"a {type(item).__name__} of shape {list(item.shape)} is beside {n} samples"


def _is_value(entry: Any) -> bool:
    return isinstance(entry, PLAIN) or (isinstance(entry, Tensor) and entry.ndim == 0)


def _first_doubt(items: Any, n: int) -> str | None:
    return next((why for why in (_doubt(item, n) for item in items) if why), None)
