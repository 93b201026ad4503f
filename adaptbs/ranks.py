"""What this process is among others that train one model, and how they come to the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size` equal ones; alone by default.

    Everything but `mine` is collective: all ranks have to call it, at the same place. It goes through torch's default
    process group, and does nothing where there is one rank or no group (`connected`).

    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        connected: whether they can talk to each other.
    """

    rank: int = 0
    world_size: int = 1
    connected: bool = False

    @classmethod
    def from_arguments(cls, rank: int | None = None, world_size: int | None = None) -> Ranks:
        """As given; where nothing is, as the default process group says, and alone where there is none.

        Raises:
            ValueError, TypeError: where they cannot be, or are not what the process group says.
        """
        if (rank is None) != (world_size is None):
            missing, given = ("world_size", f"rank={rank!r}") if world_size is None else ("rank", f"{world_size=!r}")
            raise ValueError(f"{given} without {missing}=: give both, or neither under torchrun")
        grouped = dist.is_available() and dist.is_initialized()
        if rank is None or world_size is None:
            return cls(dist.get_rank(), dist.get_world_size(), dist.get_world_size() > 1) if grouped else cls()
        for name, value in (("rank", rank), ("world_size", world_size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r}: it must be an integer")
        if not 0 <= rank < world_size:
            raise ValueError(f"{rank=}, {world_size=}: rank must lie between 0 and world_size - 1")
        if world_size == 1 or not grouped:
            return cls(rank, world_size)
        if (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
            raise ValueError(
                f"{rank=}, {world_size=}: this is rank {dist.get_rank()} of {dist.get_world_size()} in the default "
                "process group: leave both out, or give world_size=1 for a loader of this process alone"
            )
        return cls(rank, world_size, connected=True)

    def mine(self, batch: list[T]) -> list[T]:
        """This rank's share of what all of them take together, as DistributedSampler would deal it out."""
        return batch if self.world_size == 1 else batch[self.rank :: self.world_size]

    def agree(self, value: T) -> T:
        """Rank 0's word. It is pickled, so small things only."""
        if not self.connected:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Everybody's numbers, rank by rank; the same count on each. Waits for the device, where NCCL connects."""
        if not self.connected:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64, device=self._device())
        everybody = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everybody, mine)
        return [numbers.tolist() for numbers in everybody]

    def least(self, number: float) -> float:
        """The smallest of everybody's."""
        return min(said for (said,) in self.gather([number]))

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over ranks, on the same device and not waited for; `numbers` are overwritten."""
        if self.connected:
            dist.all_reduce(numbers)
        return numbers / (self.world_size if self.connected else 1)

    def check_alike(self, what: dict[str, float], advice: str) -> None:
        """Raise ValueError, on every rank, unless all have the same numbers.

        Args:
            what: the numbers by name.
            advice: what to do where they differ.
        """
        everybody = self.gather(list(what.values()))
        for name, said in zip(what, zip(*everybody, strict=True), strict=True):
            if len(set(said)) > 1:
                raise ValueError(f"{name} differs between ranks ({', '.join(f'{x:.12g}' for x in said)}): {advice}")

    def _device(self) -> torch.device:
        cuda = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


ALONE = Ranks()
