"""One order of the samples for all ranks, from which they deal out slices."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator
from torch.utils.data import DistributedSampler, Sampler

from ..ranks import Ranks


class SharedSampler(Sampler[Any]):
    """A sampler's order, the same on every rank, of a length that all can share equally.

    Each rank draws all of it. One of torch's random samplers without a generator of its own is given one, seeded as
    rank 0 says; a generator of the user's has to be in the same state on all ranks. Any other sampler has to yield the
    same everywhere; `check_alike` tells.

    Args:
        sampler: yields indices, has a length.
        ranks: that share it.
        pad: whether the order is brought to a multiple of `world_size` by its first indices, as DistributedSampler does
            it. If not, who cuts it has to leave a rest.

    Raises:
        ValueError: on every rank, for a sampler that is sliced already, or whose order nobody can agree on.
    """

    def __init__(self, sampler: Any, ranks: Ranks, pad: bool) -> None:
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "sampler=DistributedSampler(...): its slices would be sliced again: leave it out and give shuffle=True "
                "(each rank is delivered its slice of every batch), or give a sampler of the whole dataset"
            )
        self.generator: Generator | None = getattr(sampler, "generator", None)
        if hasattr(sampler, "generator"):
            if self.generator is None:
                sampler = copy.copy(sampler)
                sampler.generator = self.generator = _agreed_generator(ranks)
            state = zlib.crc32(self.generator.get_state().numpy().tobytes())
            ranks.check_alike({"the state of generator": state}, "seed it alike on all of them, or leave it out")
        self._sampler, self._ranks = sampler, ranks
        self._length = -(-len(sampler) // ranks.world_size) * ranks.world_size if pad else len(sampler)
        self._drawn = 0  # checksum of the latest order

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        order = list(self._sampler)
        integers = all(type(index) is int for index in order)
        shown = torch.tensor(order, dtype=torch.int64).numpy().tobytes() if integers else repr(order).encode()
        self._drawn = zlib.crc32(shown)
        for start in range(0, self._length, max(len(order), 1)):  # (a dataset smaller than the ranks goes round more)
            yield from order[: self._length - start]

    def check_alike(self) -> None:
        """Raise ValueError, on every rank, unless all have drawn the same order; collective."""
        self._ranks.check_alike(
            {"the order of the samples (its checksum)": self._drawn},
            "sampler= has to yield the same on all of them, and plain_batches() to be called on all or none",
        )


def _agreed_generator(ranks: Ranks) -> Generator:
    if not ranks.connected:
        raise ValueError(
            "shuffle=True without a process group: the ranks cannot agree on an order: "
            "give generator=torch.Generator().manual_seed(...), the same on all of them"
        )
    # (As many numbers are drawn on every rank, so that those seeded alike stay alike.)
    return Generator().manual_seed(ranks.agree(int(torch.empty((), dtype=torch.int64).random_())))
