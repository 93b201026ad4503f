"""A device whose memory is simulated: how much a training step takes of it, and whether it runs out.

`SimulatedDevice` is numbers only. What it does was put together from what PyTorch's CUDA allocator does: each tensor
takes a multiple of 512 bytes, free memory in pieces is not all usable, convolutions take a workspace that depends on
the batch by jumps, and other processes take memory at any time.
"""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from adaptbs.memory.device import HEADROOM, Watch
from adaptbs.memory.search import Trial

BLOCK = 512  # bytes


@dataclass
class SimulatedDevice:
    """
    Args:
        capacity: bytes of the card that other processes leave.
        rest: bytes in use before a step, or by gradients: weights, optimizer state.
        temporary: other bytes that a step takes whatever its batch.
        per_sample: bytes a sample of all activations together.
        tensors: in which these lie, each rounded up.
        fragmentation: share of what is in use that is lost beside it.
        jumps: (from this batch on, bytes more or fewer).
        taken: (at this trial, bytes that another process takes).
    """

    capacity: int
    rest: int
    temporary: int
    per_sample: float
    tensors: int = 20
    fragmentation: float = 0.0
    jumps: tuple[tuple[int, int], ...] = ()
    taken: tuple[int, int] | None = None
    ran: int = 0

    def peak(self, batch_size: int) -> int:
        each = math.ceil(self.per_sample * batch_size / self.tensors / BLOCK) * BLOCK
        workspace = sum(size for begin, size in self.jumps if batch_size >= begin)
        return self.rest + self.temporary + self.tensors * each + workspace

    def free(self) -> int:
        return self.capacity - (self.taken[1] if self.taken and self.ran >= self.taken[0] else 0)

    def limit(self) -> int:
        return int(HEADROOM * self.free())

    def fits(self, batch_size: int) -> bool:
        return self.peak(batch_size) <= self.limit() and not self.runs_out(batch_size)

    def runs_out(self, batch_size: int) -> bool:
        return self.peak(batch_size) * (1 + self.fragmentation) > self.free()

    def step(self, batch_size: int) -> int:
        """The peak of a step; raises as PyTorch does."""
        self.ran += 1
        if self.runs_out(batch_size):
            raise torch.OutOfMemoryError(f"CUDA out of memory. (simulated: batch {batch_size})")
        return self.peak(batch_size)

    def trial(self, batch_size: int) -> Trial:
        try:
            peak = self.step(batch_size)
        except torch.OutOfMemoryError:
            peak = None
        return Trial(batch_size, peak, self.limit(), self.rest)

    def largest(self, most: int = 1 << 40) -> int:
        """The largest size such that it and all below fit, by looking at each in question."""
        edges = [1, *sorted(begin for begin, _ in self.jumps if begin <= most), most + 1]
        best = 0
        for begin, end in pairwise(edges):  # (within these, memory grows with the batch)
            low, high = begin - 1, end - 1
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self.fits(middle) else (low, middle - 1)
            if low < begin:
                return best
            best = low
            if low < end - 1:
                return best
        return best


def random_device(seed: int, *, jumps: bool = False, taken: bool = False) -> tuple[SimulatedDevice, int]:
    """A device with a model on it, and a batch size to start with, from far too small to far too large."""
    draw = random.Random(seed)
    capacity = int(2 ** draw.uniform(30, 36.3))  # 1 to 80 GiB
    rest = int(capacity * draw.uniform(0.02, 0.6))
    temporary = int(rest * draw.choice((0.0, draw.uniform(0, 0.05))))
    room = HEADROOM * capacity - rest - temporary
    largest = 2 ** draw.uniform(0, 17)
    per_sample = room / largest
    device = SimulatedDevice(
        capacity, rest, temporary, per_sample, draw.randint(4, 400), draw.choice((0.0, draw.uniform(0, 0.08)))
    )
    if jumps:
        device.jumps = tuple(
            (max(2, int(largest * 2 ** draw.uniform(-4, 0.5))), int(capacity * draw.uniform(0.01, 0.15)))
            for _ in range(draw.randint(1, 3))
        )
    if taken:
        device.taken = (draw.randint(1, 3), int(capacity * draw.uniform(0.02, 0.2)))
    start = max(1, int(largest * 2 ** draw.uniform(-12, 3)))
    return device, start


class SimulatedMemory:
    """The `DeviceMemory` of a device that models on the CPU are made to believe they train on."""

    careful, sees_trials = False, True

    def __init__(self, capacity: float) -> None:
        self.capacity, self.released = int(capacity), 0
        self._in_use = self._peak = 0

    def limit(self) -> int:
        return int(HEADROOM * self.capacity)

    def in_use(self) -> int:
        return self._in_use

    def peak(self) -> int:
        return self._peak

    @contextmanager
    def watched(self):
        before, self._peak, watch = self._peak, self._in_use, Watch()
        try:
            yield watch
        finally:
            watch.peak, self._peak = self._peak, before

    def release(self) -> None:
        self.released += 1

    def take(self, size: int) -> None:
        if self._in_use + size > self.capacity:
            raise torch.OutOfMemoryError(f"CUDA out of memory. (simulated: {size} more than {self.capacity})")
        self._in_use += size
        self._peak = max(self._peak, self._in_use)

    def give_back(self, size: int) -> None:
        self._in_use -= size


class OnDevice:
    """Makes a model's passes take memory: so much a sample in its forward pass, given back when it goes backward.

    Args:
        model: on the CPU; its first argument has the samples along its first dimension.
        memory: that they take.
        per_sample: bytes.
        fixed: bytes that lie there all the time.
        fail: called with "forward" and "backward" at each pass, and may raise.
    """

    __slots__ = ("_held", "fail", "memory", "per_sample", "rows")  # so that no pass puts it back, as a user's object

    def __init__(self, model, memory, per_sample, fixed=0, fail=lambda where: None):
        self.memory, self.per_sample, self.fail, self._held = memory, per_sample, fail, 0
        self.rows = []  # of each forward pass with a gradient
        memory.take(fixed)
        model.register_forward_pre_hook(self._forward)
        model.register_forward_hook(self._watch)

    def _forward(self, model, args):
        self._give_back()  # what the last pass left, whose graph is gone if it did not go backward
        if not torch.is_grad_enabled():
            return
        size = int(self.per_sample * len(args[0]))
        self.memory.take(size)
        self._held = size
        self.rows.append(len(args[0]))
        self.fail("forward")

    def _watch(self, model, args, out):
        if out.requires_grad:
            out.register_hook(self._backward)

    def _backward(self, grad):
        self.fail("backward")
        self._give_back()

    def _give_back(self):
        self.memory.give_back(self._held)
        self._held = 0
