"""Reads how much memory a device has and how much is in use: a Protocol and its implementations."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..model import with_index

if TYPE_CHECKING:
    from torch import device as Device

log = logging.getLogger(__name__)

# Share of the memory available to this process that it plans to use. The rest is left for fragmentation, and for
# memory that other processes take meanwhile.
HEADROOM = 0.9


class Watch:
    """Memory use during one `DeviceMemory.watched()` context.

    Attributes:
        peak: largest number of bytes in use at once.
        thrashed: True if memory was full, so that the allocator had to return cached blocks to the device, which is
            slow.
    """

    peak = 0
    thrashed = False

    def saw(self, peak: int, thrashed: bool = False) -> None:
        """Record the result of the context."""
        self.peak, self.thrashed = peak, thrashed


class DeviceMemory(Protocol):
    """The memory that this process trains in. All sizes are bytes.

    Attributes:
        careful: True if running out of memory ends the process, so that only sizes that surely fit may be tried.
        sees_trials: True if `watched()` records the peak of its own context, so that a trial shows what a size needs.
    """

    sees_trials: bool

    @property
    def careful(self) -> bool: ...

    def limit(self) -> int:
        """The most bytes that may be in use at once, given the memory that is free now."""
        ...

    def in_use(self) -> int:
        """Bytes in use now."""
        ...

    def peak(self) -> int:
        """The most bytes in use at once in the run so far."""
        ...

    def watched(self) -> AbstractContextManager[Watch]:
        """A context that records its own peak and leaves `peak()` unchanged."""
        ...

    def release(self) -> None:
        """Return cached blocks to the device, after memory ran out."""
        ...


class CudaMemory:
    """A CUDA device, as PyTorch's caching allocator uses it.

    An integrated GPU shares its memory with the host. There the system may end a process before an allocation fails, so
    it counts as careful.
    """

    sees_trials = True

    def __init__(self, device: Device) -> None:
        self._device = with_index(device)

    @property
    def careful(self) -> bool:
        return bool(getattr(torch.cuda.get_device_properties(self._device), "is_integrated", False))

    def limit(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        could_have = free + torch.cuda.memory_reserved(self._device)
        if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # since torch 2.8
            could_have = min(could_have, int(total * torch.cuda.get_per_process_memory_fraction(self._device)))
        return int(HEADROOM * could_have)

    @property
    def has_statistics(self) -> bool:
        """True if the allocator tells what is in use. One from outside of PyTorch, such as RMM's, may not."""
        try:
            return bool(torch.cuda.memory_stats(self._device)) and self.limit() > 0
        except Exception as error:
            log.debug("the memory of %s cannot be read: %s", self._device, error)
            return False

    def in_use(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        before, retries, watch = self.peak(), self._retries(), Watch()
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield watch
        finally:
            watch.saw(self.peak(), self._retries() > retries)
            self._raise_peak_to(before)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def _retries(self) -> int:
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def _raise_peak_to(self, peak: int) -> None:
        """Restore the peak statistic. It can only be reset, so a block is allocated that lifts it to the old value."""
        torch.cuda.reset_peak_memory_stats(self._device)
        missing, reserved = peak - self.in_use(), torch.cuda.memory_reserved(self._device)
        if missing > 0:
            try:
                torch.empty(missing, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError:
                # Another process has taken the memory meanwhile. The statistic then stays below the old peak.
                self.release()
        if torch.cuda.memory_reserved(self._device) != reserved:
            # The block was newly reserved. Tensors to come would be cut from it, and the rest of it would be wasted.
            self.release()


class HostMemory:
    """The memory of a Linux host, or of the container that this process runs in.

    Args:
        sharers: number of processes that share this memory and grow alike.
    """

    careful = True
    sees_trials = False

    def __init__(self, sharers: int = 1) -> None:
        self._sharers = sharers

    def limit(self) -> int:
        return int(HEADROOM * (_status("VmRSS") + _available() // self._sharers))

    def in_use(self) -> int:
        return 0  # the system does not show how much of a process's memory belongs to the batch

    def peak(self) -> int:
        return _status("VmHWM")

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        watch = Watch()
        try:
            yield watch
        finally:
            watch.saw(self.peak())  # the peak of the whole process, so never below the peak of this context

    def release(self) -> None:
        return None


class SeveralDevices:
    """The devices that a model is spread over. The fullest device decides.

    All byte counts are scaled as if every device had the limit of the smallest one.
    """

    sees_trials = True

    def __init__(self, devices: Sequence[DeviceMemory]) -> None:
        self._devices = devices

    @property
    def careful(self) -> bool:
        return any(device.careful for device in self._devices)

    def limit(self) -> int:
        return min(device.limit() for device in self._devices)

    def in_use(self) -> int:
        return min(self._measured([device.in_use() for device in self._devices]))

    def peak(self) -> int:
        return max(self._measured([device.peak() for device in self._devices]))

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        watch, all_of_them = Watch(), ExitStack()
        watches = [all_of_them.enter_context(device.watched()) for device in self._devices]
        try:
            yield watch
        finally:
            all_of_them.close()
            watch.saw(max(self._measured([one.peak for one in watches])), any(one.thrashed for one in watches))

    def release(self) -> None:
        for device in self._devices:
            device.release()

    def _measured(self, values: Sequence[int]) -> list[int]:
        """Bytes of each device, scaled as if every device had the limit of the smallest one."""
        limits = [device.limit() for device in self._devices]
        return [int(value * min(limits) / max(limit, 1)) for value, limit in zip(values, limits, strict=True)]


def memory_of(devices: Collection[Device], sharers: int = 1) -> DeviceMemory | None:
    """The memory of these devices. None if it cannot be read.

    Args:
        devices: the devices that a model lies on.
        sharers: number of processes that grow alike and may share the memory of one host.
    """
    found: list[DeviceMemory] = []
    for device in sorted({with_index(device) for device in devices}, key=str):
        if device.type == "cuda":
            cuda = CudaMemory(device)
            if not cuda.has_statistics:
                log.info("the allocator of %s gives no statistics, so its memory is not read", device)
                return None
            found.append(cuda)
        elif device.type == "cpu" and len(devices) == 1 and sys.platform.startswith("linux"):
            found.append(HostMemory(sharers))
    return found[0] if len(found) == 1 else SeveralDevices(found) if found else None


def _status(key: str) -> int:
    return max(_entry(Path("/proc/self/status"), key, unit=1024) or 0, 1)


def _available() -> int:
    """Bytes still available on a Linux host, within the limit of a container."""
    available = _entry(Path("/proc/meminfo"), "MemAvailable", unit=1024) or 0
    group = Path("/sys/fs/cgroup")
    limit, used = _bytes(group / "memory.max"), _bytes(group / "memory.current")
    if limit is not None and used is not None:
        cache = _entry(group / "memory.stat", "inactive_file", unit=1) or 0  # freed by the kernel when memory is short
        available = min(available, limit - used + cache)
    return max(available, 0)


def _entry(path: Path, key: str, unit: int) -> int | None:
    """The bytes given by a file's line "key: number" or "key number", in multiples of `unit`. None if there is none."""
    for line in path.read_text().splitlines() if path.exists() else ():
        words = line.replace(":", " ").split()
        if words and words[0] == key:
            return int(words[1]) * unit
    return None


def _bytes(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None
