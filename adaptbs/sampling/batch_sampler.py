"""A batch sampler whose size may change at any step, which knows what it has issued and can go on in mid-epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Generator
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from ..ranks import ALONE, Ranks


class BatchInfo(NamedTuple):
    """A batch on its way.

    Attributes:
        cut_size: the size in force when it was cut, samples of an optimizer step.
        num_samples: the samples that it really holds, those of all ranks together.
        ends_step: whether it is the last of an optimizer step.
        indices: the indices of its samples, of all ranks, as far as they are known.
    """

    cut_size: int
    num_samples: int
    ends_step: bool = True
    indices: Sequence[Any] = ()

    @property
    def cut(self) -> list[Any]:
        """All but the indices."""
        return [self.cut_size, self.num_samples, self.ends_step]


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Cuts a sampler's indices into batches, asking for the size anew at each optimizer step.

    Workers fetch ahead, so a size asked for now is delivered some batches later. `issued` is the queue between the
    two: whoever delivers a batch pops the left end to know which size it was cut at.

    Args:
        sampler: yields indices, has a length.
        size: returns the size of the next step, samples.
        start: samples of a batch that the run began with, over all ranks. It fixes what an epoch is: with `drop_last`,
            as many samples as a stock sampler of that size delivers; and how short the last batch may be.
        drop_last: as in DataLoader.
        parts: batches of an optimizer step, on each rank.
        ranks: the ranks that each yield their share of every batch.
        rows: whole multiples of which batches are cut in, samples.
        apart: how many samples at an epoch's end are cut on their own, being of another kind.

    Attributes:
        size: as given.
        first: `start`.
        latest: iteration.
        rest: where not None, what iterations that begin now are to go on from (`Cut.state_dict`).
    """

    def __init__(
        self,
        sampler: Iterable[int],
        size: Callable[[], int],
        start: int,
        drop_last: bool,
        batches_per_step: int = 1,
        ranks: Ranks = ALONE,
        row_multiple: int = 1,
        tail_rows: int = 0,
    ) -> None:
        self.sampler, self.drop_last, self.batches_per_step, self.ranks = sampler, drop_last, batches_per_step, ranks
        self.row_multiple, self.tail_rows = row_multiple, tail_rows
        self.size, self.first = size, start
        self._rest: dict[str, Any] | None = None  # of an epoch, for iterations that begin now to go on from
        self.latest = self._new_cut()

    @property
    def epoch_samples(self) -> int:
        """How many samples an epoch delivers."""
        n = len(self.sampler)  # type: ignore[arg-type]
        return n - n % self.first if self.drop_last else n

    @property
    def shortest_tail(self) -> int:
        """The length of a stock sampler's last batch: ours is not shorter (one sample alone breaks BatchNorm)."""
        return self.epoch_samples % self.first or self.first

    @property
    def is_alone(self) -> bool:
        """True if every batch is an optimizer step of one process, and may be of any length."""
        return self.batches_per_step * self.ranks.world_size * self.row_multiple == 1 and not self.tail_rows

    @property
    def issued(self) -> deque[BatchInfo]:
        """The queue of the latest iteration."""
        return self.latest.issued

    def __iter__(self) -> Iterator[list[int]]:
        # A plain method, so that each iteration has its queue before workers begin to fetch.
        self.latest = self._new_cut()
        return self.latest.batches()

    @contextmanager
    def going_on_from(self, rest: dict[str, Any] | None) -> Iterator[None]:
        """Let iterations that begin meanwhile go on from the rest of an epoch, of `EpochCut.state_dict`, if any."""
        self._rest = rest
        try:
            yield
        finally:
            self._rest = None

    def follow(self, size: Callable[[], int]) -> None:
        """Ask this for the size of the next step from here on."""
        self.size = size

    def _new_cut(self) -> EpochCut:
        return EpochCut(self, self._rest)

    def __len__(self) -> int:
        return -(-self.epoch_samples * self.batches_per_step // self.size())


class EpochCut:
    """One epoch's indices, being cut into batches.

    Args:
        sampler: the sampler that is iterated.
        rest: the rest of an epoch to go on from; None: a whole one.

    Attributes:
        issued: batches that have been cut and not been delivered, oldest first.
        is_new: tells whether a fetched batch is to be delivered; None where all are.
    """

    is_new: Callable[[Any], bool] | None = None

    def __init__(self, sampler: AdaptiveBatchSampler, rest: dict[str, Any] | None = None) -> None:
        self._sampler, self._rest = sampler, rest
        self.issued: deque[BatchInfo] = deque()
        self._indices: Iterator[int] = iter(())
        self._left = 0  # samples of the epoch that have not been cut
        self._cut_size = 0  # of the step being cut, samples
        self._batch = 0  # batches of it that have been cut
        self._step_left = 0  # samples of it that have not been cut; 0 where its batches are cut one by one

    @property
    def queue(self) -> deque[BatchInfo]:
        """The batches that the loop has not begun, oldest first."""
        return self.issued

    def batches(self) -> Iterator[list[int]]:
        """Lists of indices."""
        # A stock loader, too, begins to draw when the first batch is asked for.
        if self._rest is None:
            self._indices, self._left = iter(self._sampler.sampler), self._sampler.epoch_samples
        else:
            yield from self._go_on(self._rest)
        sampler, shortest_tail, alone = self._sampler, self._sampler.shortest_tail, self._sampler.is_alone
        while self._left:
            if not self._batch:
                self._cut_size = sampler.size()
            if alone and self._left >= 2 * self._cut_size:  # nearly all batches; each function called here costs
                length = self._cut_size
                batch = list(islice(self._indices, length))
            else:
                length = self._length(shortest_tail)
                batch = list(islice(self._indices, length))
                self._batch = (self._batch + 1) % sampler.batches_per_step
            if not batch:
                return
            self._left -= length
            self.issued.append(BatchInfo(self._cut_size, len(batch), not self._batch, batch))
            yield batch if alone else sampler.ranks.mine(batch)
        for _ in self._indices:  # what drop_last drops; a stock loader asks once more too: RandomSampler draws then
            pass

    def _length(self, shortest_tail: int) -> int:
        """Samples of the next batch, over all ranks."""
        per_step, n = self._sampler.batches_per_step, self._sampler.ranks.world_size
        if not self._batch:
            self._step_left = self._whole_step(shortest_tail)
        # Equally many for each rank: who has none, or makes a step less, lets the others wait for ever.
        if self._step_left:
            length = n * -(-self._step_left // n // (per_step - self._batch))
            self._step_left -= length
            return length
        ahead = self._left - self._sampler.tail_rows if self._left > self._sampler.tail_rows else self._left
        unit = n * self._sampler.row_multiple
        return unit * next_length(self._cut_size // per_step // unit, ahead // unit, shortest_tail // unit)

    def _whole_step(self, shortest_tail: int) -> int:
        """Samples of a step that has to be whole, or 0 where it is cut as a stock sampler would.

        A loop takes no step with what an epoch's end leaves of one. Growth must not make it lose more in that way.
        """
        per_step, first = self._sampler.batches_per_step, self._sampler.first
        if per_step == 1 or self._cut_size == first * per_step or self._left < per_step * shortest_tail:
            return 0
        n = self._sampler.ranks.world_size
        return n * next_length(self._cut_size // n, self._left // n, per_step * shortest_tail // n)

    def _go_on(self, state: dict[str, Any]) -> Iterator[list[int]]:
        self._left, self._cut_size = state["left"], state["cut_size"]
        self._batch, self._step_left = state["batch"], state["step_left"]
        indices = state["indices"]
        self._indices = iter(indices.tolist() if isinstance(indices, torch.Tensor) else indices)
        for cut_size, num_samples, ends_step in state["issued"]:
            batch = list(islice(self._indices, num_samples))
            self.issued.append(BatchInfo(cut_size, num_samples, ends_step, batch))
            yield self._sampler.ranks.mine(batch)

    def state_dict(self) -> dict[str, Any]:
        """All that has not been delivered: numbers and a tensor of indices (a list, where they are no integers).

        The sampler is drawn to its end for it, which it would be sooner or later.
        """
        rest = list(self._indices)
        self._indices = iter(rest)
        indices = [index for issued in self.issued for index in issued.indices] + rest
        integers = all(type(index) is int for index in indices)
        return {
            "indices": torch.tensor(indices, dtype=torch.int64) if integers else indices,
            "issued": [issued.cut for issued in self.issued],
            "left": self._left, "cut_size": self._cut_size, "batch": self._batch, "step_left": self._step_left,
        }  # fmt: skip


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
