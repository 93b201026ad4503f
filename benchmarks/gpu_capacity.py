"""So much of a card's memory and no more for a while (`gpu.py`): of a CUDA device, or of a simulated one on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from adaptbs.out_of_memory import is_out_of_memory
from tests.simulated_device import OnDevice, SimulatedMemory

MIB = 1 << 20


class CudaCapacity:
    """What `torch.cuda.set_per_process_memory_fraction` leaves.

    Args:
        device: the card.
        capacity: bytes that the allocator may hold, of the whole card's.
    """

    simulated = False

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.device, self.capacity = device, capacity

    @contextmanager
    def limited(self) -> Iterator[None]:
        clean(self.device)
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.capacity / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            clean(self.device)

    def holds(self, model: nn.Module) -> None:
        """Nothing to be done: the model lies on the card."""

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Bytes in use at the worst moment of it; None where it ran out."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            run()
        except RuntimeError as error:  # (torch.OutOfMemoryError is one; libraries' own failures are plain ones)
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cuda.max_memory_allocated(self.device)

    def counts(self) -> dict[str, int]:
        """What the allocator has counted since the process began."""
        stats = torch.cuda.memory_stats(self.device)
        return {"out_of_memory_errors": stats["num_ooms"], "allocator_retries": stats["num_alloc_retries"]}


class SimulatedCapacity:
    """The same of a device that is simulated (tests/simulated_device.py), to try the program where there is no card.

    Args:
        capacity: bytes.
        per_sample: bytes that a model's pass takes.
    """

    simulated = True

    def __init__(self, capacity: int, per_sample: int) -> None:
        self.memory, self._per_sample, self._errors = CountingMemory(capacity), per_sample, 0

    @contextmanager
    def limited(self) -> Iterator[None]:
        with (
            patch("adaptbs.probe.memory_of", lambda *_: self.memory),
            patch("adaptbs.loader_run.memory_of", lambda *_: self.memory),
        ):
            yield

    def holds(self, model: nn.Module) -> None:
        OnDevice(model, self.memory, self._per_sample)

    def peak(self, run: Callable[[], Any]) -> int | None:
        with self.memory.watched() as seen:
            try:
                run()
            except torch.OutOfMemoryError:
                return None
        return seen.peak

    def counts(self) -> dict[str, int]:
        return {"out_of_memory_errors": self.memory.errors}


class CountingMemory(SimulatedMemory):
    """Counts what it refuses."""

    errors = 0

    def take(self, size: int) -> None:
        try:
            super().take(size)
        except torch.OutOfMemoryError:
            self.errors += 1
            raise


Capacity = CudaCapacity | SimulatedCapacity


def capacity_of(device: torch.device, capacity: int, simulated_samples: int) -> Capacity:
    """A limit of so many bytes; on a CPU a simulated device that holds so many samples."""
    if device.type == "cuda":
        return CudaCapacity(device, capacity)
    return SimulatedCapacity(1000 * simulated_samples, 1000)


def since(before: dict[str, int], capacity: Capacity) -> dict[str, int]:
    """What has been counted since then."""
    return {name: count - before[name] for name, count in capacity.counts().items()}


def clean(device: torch.device) -> None:
    """Let nothing of what ran before lie there, or show in the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
