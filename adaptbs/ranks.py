"""Rank, world size, and the collectives that keep decisions identical on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of this process and the number of ranks; by default a single process.

    Every method but `mine` is collective: all ranks must call it at the same point. They use torch's default process
    group. Unless `connected`, they communicate nothing and return this process's own values.

    Attributes:
        rank: rank of this process, from 0.
        world_size: number of ranks.
        connected: True if the ranks can communicate through the default process group.
        in_runs: True if a rank's share of a batch is a run of its samples, as accelerate deals them out; else it is
            every world_size-th, as in DistributedSampler.
    """

    rank: int = 0
    world_size: int = 1
    connected: bool = False
    in_runs: bool = False

    @classmethod
    def from_arguments(cls, rank: int | None = None, world_size: int | None = None) -> Ranks:
        """Build from the given rank and world size. If neither is given, ask the default process group.

        Without a process group the result is a single process.

        Raises:
            TypeError: if a value is not an integer.
            ValueError: if only one of the two is given, `rank` is out of range, or they contradict the process group.
        """
        if (rank is None) != (world_size is None):
            missing, given = ("world_size", f"rank={rank!r}") if world_size is None else ("rank", f"{world_size=!r}")
            raise ValueError(f"{given} without {missing}=: give both, or give neither under torchrun")
        grouped = dist.is_available() and dist.is_initialized()
        if rank is None or world_size is None:
            return cls(dist.get_rank(), dist.get_world_size(), dist.get_world_size() > 1) if grouped else cls()
        for name, value in (("rank", rank), ("world_size", world_size)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r}: it must be an integer")
        if not 0 <= rank < world_size:
            raise ValueError(f"{rank=}, {world_size=}: rank must be between 0 and world_size - 1")
        if world_size == 1 or not grouped:
            return cls(rank, world_size)
        if (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
            raise ValueError(
                f"{rank=}, {world_size=}: this is rank {dist.get_rank()} of {dist.get_world_size()} in the default "
                "process group. Leave both out, or give rank=0, world_size=1 for a loader of this process alone"
            )
        return cls(rank, world_size, connected=True)

    def mine(self, batch: list[T]) -> list[T]:
        """This rank's share of the samples of all ranks. They can be shared equally."""
        if self.world_size == 1:
            return batch
        if self.in_runs:
            each = len(batch) // self.world_size
            return batch[self.rank * each : (self.rank + 1) * each]
        return batch[self.rank :: self.world_size]

    def agree(self, value: T) -> T:
        """Broadcast rank 0's value. It is pickled, so keep it small."""
        if not self.connected:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of each rank, in rank order. All must pass equally many. Under NCCL this waits for the device."""
        if not self.connected:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64, device=self._device())
        everybody = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everybody, mine)
        return [numbers.tolist() for numbers in everybody]

    def gather_any(self, values: list[Any]) -> list[list[Any]]:
        """The values of each rank, in rank order. They are pickled, so keep them small."""
        if not self.connected:
            return [values]
        said: list[list[Any]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(said, values)
        return said

    def least(self, number: float) -> float:
        """The smallest number of all ranks."""
        return min(said for (said,) in self.gather([number]))

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over ranks, on the same device, without waiting for it. Overwrites `numbers`."""
        if self.connected:
            dist.all_reduce(numbers)
        return numbers / (self.world_size if self.connected else 1)

    def check_alike(self, what: Mapping[str, object], advice: str) -> None:
        """Raise ValueError on every rank unless all ranks have the same values.

        Args:
            what: the values, by name. They are pickled, so keep them small.
            advice: what to do if they differ; the end of the error message.
        """
        for name, said in zip(what, zip(*self.gather_any(list(what.values())), strict=True), strict=True):
            if any(value != said[0] for value in said):
                raise ValueError(f"{name} differs between ranks ({', '.join(map(repr, said))}): {advice}")

    def _device(self) -> torch.device:
        cuda = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


ALONE = Ranks()
