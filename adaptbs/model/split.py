"""Cut a batch by sample: by the user's `split=`, or else only if its layout leaves no doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .batches import batch_length, repeat_batch, slice_batch
from .layouts import doubt_of

#: `split=`: (batch, start, stop) -> a batch of the samples start:stop.
Split: TypeAlias = Callable[[Any, int, int], Any]

ADVICE = "Give split=(batch, start, stop) -> batch, a function that returns the samples start:stop of a batch"


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
    entries itself, but not both. Nested and sparse tensors cannot be cut. Targets put end to end, such as boxes of
    shape [boxes, 6], show nothing of the samples.

    >>> import torch
    >>> why_not_cut((torch.ones(4, 3), torch.ones(4), "train"))
    >>> why_not_cut((torch.ones(4, 3), torch.ones(7, 6)))
    'a Tensor of shape [7, 6] is beside 4 samples'
    """
    try:
        n = batch_length(batch)
    except TypeError as error:
        return str(error)
    return doubt_of(batch, n)
