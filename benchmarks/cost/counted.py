"""Data of any size that keep nothing, and counts of bytes and calls."""

from __future__ import annotations

import gc
import io
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, IterableDataset, Sampler

from benchmarks.cost.calls import PACKAGE


@dataclass
class Row:
    """One cost.

    Attributes:
        what: names the cost.
        by: names the size that it is measured against.
        unit: of the figures.
        figures: cost by size.
    """

    what: str
    by: str
    unit: str
    figures: dict[int, float]

    @property
    def law(self) -> float:
        """Power of the size, between the two largest; 0 where the cost stays."""
        (small, before), (large, after) = sorted(self.figures.items())[-2:]
        return math.log(max(after, 1) / max(before, 1)) / math.log(large / small)


class Rows(Dataset[Any]):
    """So many samples, none of which is kept."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((4,), i / self.n)


class Stream(Rows, IterableDataset[Any]):
    """The same one after another; `read` counts those that were read."""

    read = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for i in range(self.n):
            self.read += 1
            yield self[i]


class Placed(Stream):
    """A stream that saves and loads its own place."""

    place = begin = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        begin, self.begin = self.begin, 0
        for i in range(begin, self.n):
            self.place, self.read = i + 1, self.read + 1
            yield self[i]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["place"]


class Unknown(Sampler[int]):
    """A sampler of the user's."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n - 1, -1, -1))


class _Made(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.total += result.nbytes
        return result


@contextmanager
def counting_bytes() -> Iterator[SimpleNamespace]:
    """Peak of the bytes of Python's objects, and bytes of all tensors made: `.bytes`, afterwards."""
    counted = SimpleNamespace(bytes=0)
    gc.collect()
    tracemalloc.start()
    try:
        with _Made() as made:
            yield counted
        counted.bytes = tracemalloc.get_traced_memory()[1] + made.total
    finally:
        tracemalloc.stop()


def calls(action: Callable[[], Any]) -> int:
    """Functions of adaptbs that are entered meanwhile."""
    entered = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal entered
        entered += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return entered


def saved(state: Any) -> int:
    """Bytes of its file."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()
