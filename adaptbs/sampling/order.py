"""The sampler of a pass's order, and the length of the next batch."""

from __future__ import annotations

from typing import Any

from torch import Generator
from torch.utils.data import RandomSampler, SequentialSampler


def next_length(size: int, left: int, shortest_tail: int) -> int:
    """Number of the `left` samples to take now: `size`, or fewer if that would leave too short a tail.

    If no cut leaves both parts at least `shortest_tail` long, the rest is halved. No batch is longer than `size`, which
    may be a memory limit.
    """
    rest = left - size
    if rest <= 0:
        return left
    shortest_tail = min(shortest_tail, size)
    if rest >= shortest_tail:
        return size
    return left - shortest_tail if left >= 2 * shortest_tail else -(-left // 2)


def indices(dataset: Any, shuffle: bool | None, sampler: Any, generator: Generator | None) -> Any:
    """The sampler of indices that a DataLoader with these arguments would use. It has a length.

    Raises:
        TypeError, ValueError: if the data have no length, or both `shuffle` and `sampler` are given.
    """
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset of type {type(dataset).__name__} has no length: the batch grows by shares of the data, "
            "so give it a __len__ (of an IterableDataset an estimate will do)"
        )
    if sampler is not None and shuffle:
        raise ValueError("give sampler= or shuffle=True, not both")
    if sampler is None:
        sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    if not hasattr(sampler, "__len__"):
        raise TypeError(f"sampler of type {type(sampler).__name__} has no length: give it a __len__")
    return sampler


def number_pass(number: int, *sources: Any) -> None:
    """Call `set_epoch(number)` of the sources that have it, such as a sampler that shuffles by it."""
    for source in sources:
        if callable(set_epoch := getattr(source, "set_epoch", None)):
            set_epoch(number)
