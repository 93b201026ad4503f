"""Cut a batch by sample: by the user's `split=`, or else only if its layout leaves no doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from .batches import batch_length, repeat_batch, slice_batch

#: `split=`: (batch, start, stop) -> a batch of the samples start:stop.
Split: TypeAlias = Callable[[Any, int, int], Any]

ADVICE = "Give split=(batch, start, stop) -> batch, a function that returns the samples start:stop of a batch"
PLAIN = (str, bytes, bool, Number, type(None))


class NotCutError(ValueError):
    """The layout of a batch does not tell which of its entries belong to which sample."""


def certain_split(batch: Any, start: int, stop: int) -> Any:
    """Samples start:stop of the batch. Raises NotCutError if its layout does not tell which entries are theirs."""
    check_certain(batch)
    return slice_batch(batch, start, stop)


def certain_repeat(batch: Any, n: int) -> Any:
    """A batch of n samples, made by repeating those of this one. Raises NotCutError as `certain_split` does."""
    if why := why_not_cut(batch):
        raise NotCutError(
            f"the batch cannot be repeated: {why}. Let everything that collate_fn= returns have one entry a sample"
        )
    return repeat_batch(batch, n)


def check_certain(batch: Any) -> None:
    """Raise NotCutError if the layout of a batch does not tell which entries belong to which sample."""
    if why := why_not_cut(batch):
        raise NotCutError(f"the batch cannot be cut: {why}. {ADVICE}")


def why_not_cut(batch: Any) -> str | None:
    """The reason why it is not certain which entries belong to which of n samples; None if it is.

    It is certain if every tensor and array is n long or has no dimension, and every list is n long or holds such
    entries itself. Targets put end to end, such as boxes of shape [boxes, 6], show nothing of the samples.

    >>> import torch
    >>> why_not_cut((torch.ones(4, 3), torch.ones(4), "train"))
    >>> why_not_cut((torch.ones(4, 3), torch.ones(7, 6)))
    'a Tensor of shape [7, 6] is beside 4 samples'
    """
    try:
        n = batch_length(batch)
    except TypeError as error:
        return str(error)
    return _doubt(batch, n, inside=False)


def _doubt(item: Any, n: int, inside: bool = True) -> str | None:
    if isinstance(item, (Tensor, np.ndarray)):
        if item.ndim == 0 or (item.shape[0] == n and not getattr(item, "is_sparse", False)):
            return None
        return f"a {type(item).__name__} of shape {list(item.shape)} is beside {n} samples"
    if isinstance(item, PLAIN):
        return None
    if isinstance(item, Mapping):
        return _first_doubt(item.values(), n)
    if is_dataclass(item) and not isinstance(item, type):
        return _first_doubt([getattr(item, f.name) for f in fields(item) if hasattr(item, f.name)], n)
    if isinstance(item, list) and inside and len(item) == n:
        return None  # an entry a sample, of whatever size; or as many inputs, each of which is n long
    if isinstance(item, (list, tuple)):
        if inside and item and all(isinstance(entry, str) for entry in item) and len(item) == n:
            return None  # as torch collates texts
        if inside and item and all(isinstance(entry, PLAIN) for entry in item) and not hasattr(item, "_fields"):
            return f"a {type(item).__name__} of {len(item)} values is beside {n} samples"
        return _first_doubt(item, n)
    return f"a {type(item).__name__} does not show its samples"


def _first_doubt(items: Any, n: int) -> str | None:
    return next((why for why in (_doubt(item, n) for item in items) if why), None)
