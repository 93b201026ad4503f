"""The order of a pass's samples, and how many of them make the next batch."""

from __future__ import annotations

from typing import Any

from torch import Generator
from torch.utils.data import RandomSampler, SequentialSampler


def next_length(size: int, left: int, shortest_tail: int) -> int:
    """How many of the `left` samples to take now: `size`, or fewer where that would leave too short a tail.

    Where no cut leaves both parts at least `shortest_tail` long, the rest is halved: never longer than `size`, which
    a memory limit may stand behind.
    """
    rest = left - size
    if rest <= 0:
        return left
    shortest_tail = min(shortest_tail, size)
    if rest >= shortest_tail:
        return size
    return left - shortest_tail if left >= 2 * shortest_tail else -(-left // 2)


def indices(dataset: Any, shuffle: bool | None, sampler: Any, generator: Generator | None) -> Any:
    """The sampler of indices that a DataLoader of these arguments would use; one that has a length.

    Raises:
        TypeError, ValueError: where the data have no length, or there are two orders.
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
    """Call `set_epoch` of those that have it, such as a sampler that shuffles by it, with the number of the pass."""
    for source in sources:
        if callable(set_epoch := getattr(source, "set_epoch", None)):
            set_epoch(number)
