"""Tells whether what a batch holds follows the samples that it is collated from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .batches import batch_length, tensors_of


def has_a_row_a_sample(batch: Any, samples: int) -> bool:
    """True if the batch's first dimension is that of its samples; False also if its layout does not tell."""
    try:
        return batch_length(batch) == samples
    except TypeError:
        return False


def takes_one_apart(batch: Any, inputs: tuple[Any, ...]) -> bool:
    """True if a model was called on what a batch of one sample holds, without the dimension of the samples.

    As where a loop takes `x[0]` of a batch whose only sample is a whole batch, so that the others of a larger one would
    be lost. A loop that joins them, as by `x.flatten(0, 1)`, looks the same at that size.

    Args:
        batch: of one sample.
        inputs: shapes of the tensors that the model was called on.
    """
    whole = {tuple(tensor.shape) for tensor in tensors_of(batch)}
    inner = {shape[1:] for shape in whole if shape}
    return bool(inputs) and inputs[0] in inner - whole


def collates_all(collate: Callable[[list[Any]], Any], sample: Any) -> bool | None:
    """True if `collate` makes twice as much of two samples as of one. None if the layout does not tell.

    Args:
        collate: makes a batch of a list of samples.
        sample: taken once and twice.
    """
    return _is_twice(collate([sample, sample]), collate([sample]))


def _is_twice(two: Any, one: Any) -> bool | None:
    """True if any part of `two` holds twice as much as its counterpart in `one`. None where no part has a length."""
    if isinstance(one, (Tensor, np.ndarray)):  # samples need not come along the first dimension
        return math.prod(two.shape) == 2 * math.prod(one.shape) if one.ndim else None
    if is_dataclass(one) and not isinstance(one, Mapping):
        one, two = ({f.name: getattr(batch, f.name, None) for f in fields(one)} for batch in (one, two))
    if isinstance(one, Mapping):
        return _any(_is_twice(two[key], value) for key, value in one.items() if key in two)
    if isinstance(one, (list, tuple)):
        if one and len(two) == 2 * len(one):
            return True
        return _any(_is_twice(b, a) for a, b in zip(one, two, strict=False))
    return None


def _any(found: Any) -> bool | None:
    """True if any is True; None if none is known."""
    known = [value for value in found if value is not None]
    return any(known) if known else None
