"""Whether a larger batch fits: a plain check of free memory against what the run holds already."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import device as Device

HEADROOM = 0.9  # share of the free memory that a larger batch may take


def largest_affordable(batch_size: int, in_use: int, free: int) -> float:
    """The largest batch size that surely fits, samples.

    Peak memory is affine in the batch size, so going from B to B' adds at most (B'/B - 1) of all that is in use.

    Args:
        batch_size: that the run has run, samples.
        in_use: peak bytes at that size.
        free: bytes not in use.
    """
    return batch_size * (1 + HEADROOM * free / in_use)


def affordable(batch_size: int, device: Device, sharers: int = 1) -> float:
    """`largest_affordable` on this device now; inf where its memory cannot be asked.

    Args:
        batch_size: that the run has run, samples.
        device: that trains.
        sharers: processes that grow alike and may be on the same host, whose memory they share.
    """
    usage = _cuda(device) if device.type == "cuda" else _host() if device.type == "cpu" else None
    if usage is None:
        return float("inf")
    in_use, free = usage
    return largest_affordable(batch_size, in_use, free if device.type == "cuda" else free // sharers)


def _cuda(device: Device) -> tuple[int, int]:
    free, _ = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return max(peak, 1), free + max(0, torch.cuda.memory_reserved(device) - peak)


def _host() -> tuple[int, int] | None:
    """Peak resident and available bytes of a Linux host, within the limit of a container; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    status = _entry(Path("/proc/self/status"), "VmHWM", unit=1024)
    available = _entry(Path("/proc/meminfo"), "MemAvailable", unit=1024)
    if status is None or available is None:
        return None
    group = Path("/sys/fs/cgroup")
    limit, used = _bytes(group / "memory.max"), _bytes(group / "memory.current")
    if limit is not None and used is not None:
        cache = _entry(group / "memory.stat", "inactive_file", unit=1) or 0  # given back when memory is short
        available = min(available, limit - used + cache)
    return max(status, 1), max(available, 0)


def _entry(path: Path, key: str, unit: int) -> int | None:
    """The bytes that a line "key: number" or "key number" of a file stands for."""
    for line in path.read_text().splitlines() if path.exists() else ():
        words = line.replace(":", " ").split()
        if words and words[0] == key:
            return int(words[1]) * unit
    return None


def _bytes(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None
