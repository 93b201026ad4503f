"""Compares a batch with the samples that it was collated from: one row for each, or something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .batches import batch_length, tensors_of
from .layouts import shape_of


def has_a_row_a_sample(batch: Any, samples: int) -> bool:
    """True if the batch's first dimension is `samples` long. False also if its layout does not tell."""
    try:
        return batch_length(batch) == samples
    except TypeError:
        return False


def takes_one_apart(batch: Any, inputs: tuple[Any, ...]) -> bool:
    """True if a model was called on the sample of a batch of one, without the batch dimension.

    A dataset may return whole batches, so that the loader's batch size is 1 and the loop takes `x[0]`. In a larger
    batch it would lose the other samples. A loop that joins them by `x.flatten(0, 1)` looks the same at size 1.

    Args:
        batch: a batch of one sample.
        inputs: shapes of the tensors that the model was called on.
    """
    whole = {shape_of(tensor) for tensor in tensors_of(batch)}
    inner = {shape[1:] for shape in whole if shape}
    return bool(inputs) and inputs[0] in inner - whole


def collates_all(collate: Callable[[list[Any]], Any], sample: Any) -> bool | None:
    """True if a batch of two samples is twice as long as a batch of one. None if the layout does not tell.

    Args:
        collate: makes a batch from a list of samples.
        sample: the sample. It is collated once alone and once with itself.
    """
    return _is_twice(collate([sample, sample]), collate([sample]))


def _is_twice(two: Any, one: Any) -> bool | None:
    """True if any part of `two` holds twice as much as its counterpart in `one`. None where no part has a length."""
    if isinstance(one, (Tensor, np.ndarray)):  # samples need not come along the first dimension
        return _size(two) == 2 * _size(one) if one.ndim else None
    if is_dataclass(one) and not isinstance(one, Mapping):
        one, two = ({f.name: getattr(batch, f.name, None) for f in fields(one)} for batch in (one, two))
    if isinstance(one, Mapping):
        return _any(_is_twice(two[key], value) for key, value in one.items() if key in two)
    if isinstance(one, (list, tuple)):
        if one and len(two) == 2 * len(one):
            return True
        return _any(_is_twice(b, a) for a, b in zip(one, two, strict=False))
    return None


def _size(item: Any) -> int:
    """Number of entries. A nested tensor has no shape to multiply."""
    return item.numel() if isinstance(item, Tensor) else math.prod(item.shape)


def _any(found: Any) -> bool | None:
    """True if any is True; None if none is known."""
    known = [value for value in found if value is not None]
    return any(known) if known else None
