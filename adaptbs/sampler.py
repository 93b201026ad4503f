"""A batch sampler whose size may change at any batch, and which keeps account of what it has issued."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch import Generator
from torch.utils.data import IterableDataset, RandomSampler, Sampler, SequentialSampler


class Issued(NamedTuple):
    """A batch on its way: the size in force when it was cut, and how many samples it really holds."""

    nominal: int
    length: int


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Cuts a sampler's indices into batches, asking for the size anew each time.

    Workers fetch ahead, so a size asked for now is delivered some batches later. `issued` is the queue between the
    two: who delivers a batch pops the left end to know which size it was cut at.

    Args:
        sampler: yields indices, has a length.
        size: returns the size of the next batch, samples.
        start: the size the run began with. It fixes what an epoch is: with `drop_last`, as many samples as a stock
            sampler of that size delivers; and how short the last batch may be.
        drop_last: as in DataLoader.
    """

    def __init__(self, sampler: Iterable[int], size: Callable[[], int], start: int, drop_last: bool) -> None:
        self.sampler, self.drop_last = sampler, drop_last
        self._size, self._start = size, start
        self.issued: deque[Issued] = deque()

    @property
    def epoch_samples(self) -> int:
        """How many samples an epoch delivers."""
        n = len(self.sampler)  # type: ignore[arg-type]
        return n - n % self._start if self.drop_last else n

    @property
    def shortest_tail(self) -> int:
        """The length of a stock sampler's last batch: ours is not shorter (one sample alone breaks BatchNorm)."""
        return self.epoch_samples % self._start or self._start

    def __iter__(self) -> Iterator[list[int]]:
        # A plain method, so that each iteration has its queue before workers begin to fetch.
        self.issued = deque()
        return self._batches(iter(self.sampler), self.issued)

    def _batches(self, indices: Iterator[int], issued: deque[Issued]) -> Iterator[list[int]]:
        left, shortest_tail = self.epoch_samples, self.shortest_tail
        while left:
            nominal = self._size()
            length = next_length(nominal, left, shortest_tail)
            batch = list(islice(indices, length))
            if not batch:
                return
            issued.append(Issued(nominal, len(batch)))
            yield batch
            left -= length

    def __len__(self) -> int:
        return -(-self.epoch_samples // self._size())


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
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset of type {type(dataset).__name__} has no length: the batch grows by shares of the data, "
            "so give a dataset with __len__ and __getitem__"
        )
    if sampler is not None and shuffle:
        raise ValueError("give sampler= or shuffle=True, not both")
    if sampler is None:
        sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
    if not hasattr(sampler, "__len__"):
        raise TypeError(f"sampler of type {type(sampler).__name__} has no length: give it a __len__")
    return sampler
