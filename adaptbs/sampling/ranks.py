"""Gives all ranks the same order of the samples. Each rank takes its slices of it."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DistributedSampler, Sampler

from ..ranks import Ranks
from .draw import Draw, OwnDraw, draw, in_chunks


class SharedSampler(Sampler[Any], OwnDraw):
    """Yields a sampler's order, the same on every rank, with a length that all ranks can share equally.

    Each rank draws the whole order and keeps it as a tensor, 8 bytes a sample; nothing if it is sequential. If a random
    sampler of torch has no generator, it gets one that is seeded by rank 0. If it has the user's generator, that must
    be in the same state on all ranks. Of a DistributedSampler it takes the whole order. Any other sampler must yield
    the same indices on all ranks. `check_alike` checks that.

    Args:
        sampler: yields indices and has a length.
        ranks: the ranks that share the order.
        pad: True appends the first indices up to a multiple of `world_size`, as DistributedSampler does. If False, the
            last samples that the ranks cannot share equally have to be left out when the order is cut.

    Raises:
        ValueError: on every rank, if the sampler yields one rank's share of an order that cannot be had whole, or if
            the ranks cannot agree on its order.
    """

    def __init__(self, sampler: Any, ranks: Ranks, pad: bool) -> None:
        if isinstance(sampler, DistributedSampler):
            sampler = _whole_order_of_these(sampler, ranks)
        self.generator: Generator | None = getattr(sampler, "generator", None)
        if hasattr(sampler, "generator"):
            if self.generator is None:
                sampler = copy.copy(sampler)
                sampler.generator = self.generator = _agreed_generator(ranks)
            state = zlib.crc32(self.generator.get_state().numpy().tobytes())
            ranks.check_alike({"the state of generator": state}, "seed it alike on all ranks, or leave generator= out")
        self._sampler, self._ranks, self._pad = sampler, ranks, pad
        self._drawn = 0  # checksum of the latest order

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch's number on to the sampler, which may be a copy of the one that was given."""
        if callable(handed_on := getattr(self._sampler, "set_epoch", None)):
            handed_on(epoch)

    def __len__(self) -> int:
        return self._padded_length(len(self._sampler))

    def __iter__(self) -> Iterator[Any]:
        return self.draw().indices

    @property
    def padding(self) -> int:
        """The number of first indices that are appended."""
        return len(self) - len(self._sampler)

    def draw(self, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
        """Draw the order of an epoch. All ranks draw all of it before the first batch."""
        drawn = draw(self._sampler, recipe)
        order = drawn.whole()
        shown: Any = order.numpy() if isinstance(order, Tensor) else repr(order).encode()
        self._drawn = zlib.crc32(shown)
        return Draw(self._padded(order, position), drawn.recipe)

    def _padded(self, order: Sequence[Any] | Tensor, position: int) -> Iterator[Any]:
        # A dataset with fewer samples than there are ranks is repeated more than once.
        length, samples = self._padded_length(len(order)), max(len(order), 1)
        return chain.from_iterable(
            in_chunks(order, max(position - start, 0), min(samples, length - start))
            for start in range(position - position % samples, length, samples)
        )

    def _padded_length(self, samples: int) -> int:
        """Length of an order of `samples` indices after padding."""
        return -(-samples // self._ranks.world_size) * self._ranks.world_size if self._pad else samples

    def check_alike(self) -> None:
        """Raise ValueError on every rank unless all have drawn the same order. Collective: every rank must call it."""
        self._ranks.check_alike(
            {"the order of the samples (its checksum)": self._drawn},
            "sampler= has to yield the same indices on all ranks, and plain_batches() has to be called on all or none",
        )


class WholeOrder(Sampler[Any]):
    """The whole order of a DistributedSampler, padded or cut as by it. It yields only one rank's share itself."""

    def __init__(self, sampler: DistributedSampler[Any]) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return self._sampler.total_size

    def __iter__(self) -> Iterator[Any]:
        whole = copy.copy(self._sampler)  # at the epoch that it has been set to
        vars(whole).update(rank=0, num_replicas=1, num_samples=whole.total_size)
        return iter(whole)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch; see DistributedSampler."""
        self._sampler.set_epoch(epoch)


def whole_order(sampler: Any) -> Any:
    """The sampler itself. For a DistributedSampler, a sampler of the whole order that it takes its share of."""
    return WholeOrder(sampler) if isinstance(sampler, DistributedSampler) else sampler


def _whole_order_of_these(sampler: DistributedSampler[Any], ranks: Ranks) -> WholeOrder:
    """The order that these ranks take their shares of."""
    its, here = (sampler.rank, sampler.num_replicas), (ranks.rank, ranks.world_size)
    if type(sampler).__iter__ is not DistributedSampler.__iter__:
        raise ValueError(
            f"sampler= of type {type(sampler).__name__}, a DistributedSampler with an order of its own: it yields one "
            "rank's share, and that would be shared out again. Give a sampler of the whole dataset, alike on all ranks"
        )
    if its != here:
        raise ValueError(
            f"sampler=DistributedSampler(...) is of rank {its[0]} of {its[1]}, this of rank {here[0]} of {here[1]}. "
            "Make both after init_process_group(), or leave the sampler out and give shuffle=True"
        )
    return WholeOrder(sampler)


def _agreed_generator(ranks: Ranks) -> Generator:
    if not ranks.connected:
        raise ValueError(
            "shuffle=True without a process group: the ranks cannot agree on an order. "
            "Give generator=torch.Generator().manual_seed(...) with the same seed on all of them."
        )
    # Every rank draws a number, though only rank 0's is used, so that ranks that were seeded alike stay alike.
    return Generator().manual_seed(ranks.agree(int(torch.empty((), dtype=torch.int64).random_())))
