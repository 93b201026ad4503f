"""A test double of PyTorch's CUDA caching allocator: blocks, segments, statistics, retries and running out.

The rules are those of `CUDACachingAllocator.cpp`. Sizes round up to 512 bytes. Up to 1 MiB they are cut from segments
of 2 MiB, larger ones from segments of 20 MiB or of their own size. A block is split only if enough is left over, so the
statistics count blocks, not tensors. Where the device has no more memory, cached segments are given back first, which
counts as a retry.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch

MiB = 1 << 20
BLOCK = 512  # bytes that every size is a multiple of
SMALL = MiB  # the largest size of the pool of small blocks
SMALL_SEGMENT, LARGE_SEGMENT, MIN_LARGE, ROUND_LARGE = 2 * MiB, 20 * MiB, 10 * MiB, 2 * MiB


@dataclass(eq=False)
class Block:
    size: int
    segment: Segment
    free: bool = True


@dataclass(eq=False)
class Segment:
    size: int
    small: bool
    blocks: list[Block] = field(default_factory=list)


class CachingAllocator:
    """One device's memory.

    Args:
        total: bytes of the device.
        expandable: True for expandable segments, where free memory of any place can be used for any size.
    """

    def __init__(self, total: int, *, expandable: bool = False) -> None:
        self.total, self.expandable = total, expandable
        self.others = 0  # bytes that other processes hold
        self.fraction = 1.0  # of the total that this process may take
        self.retries = self.ooms = 0
        self.allocated = self.allocated_peak = self.reserved = self.reserved_peak = 0
        self._segments: list[Segment] = []
        self._taken: dict[int, list[Block]] = defaultdict(list)  # by the size asked for

    @property
    def free(self) -> int:
        """Bytes that no process holds, as `cudaMemGetInfo` says."""
        return max(self.total - self.others - self.reserved, 0)

    def take(self, size: int) -> Block | None:
        """Allocate so many bytes. Raises torch.OutOfMemoryError if they are not there."""
        if size == 0:
            return None
        rounded = max(-(-size // BLOCK) * BLOCK, BLOCK)
        block = self._cached(rounded) or self._reserve(rounded)
        if block is None:
            cached = self.release()
            self.retries += 1
            block = self._reserve(rounded) if cached else None
        if block is None:
            self.ooms += 1
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / MiB:.2f} MiB. GPU 0 has a total capacity of "
                f"{self.total / MiB:.2f} MiB of which {self.free / MiB:.2f} MiB is free."
            )
        self._split(block, rounded)
        block.free = False
        self.allocated += block.size
        self.allocated_peak = max(self.allocated, self.allocated_peak)
        self._taken[size].append(block)
        return block

    def give_back(self, size: int) -> None:
        """Free the block that was last allocated for so many bytes."""
        if size:
            self.free_block(self._taken[size][-1], size)

    def free_block(self, block: Block, size: int) -> None:
        """Free a block that was allocated for so many bytes. It stays cached."""
        self._taken[size].remove(block)
        self.allocated -= block.size
        block.free = True
        blocks = block.segment.blocks
        at = blocks.index(block)
        for neighbour in (at + 1, at - 1):
            if 0 <= neighbour < len(blocks) and blocks[neighbour].free:
                other = blocks.pop(neighbour)
                block.size += other.size
                at = blocks.index(block)

    def release(self) -> int:
        """Give cached segments back to the device, as `torch.cuda.empty_cache()` does; the bytes."""
        before = self.reserved
        if self.expandable:
            for segment in self._segments:
                segment.blocks = [block for block in segment.blocks if not block.free]
                segment.size = sum(block.size for block in segment.blocks)
        self._segments = [s for s in self._segments if not all(block.free for block in s.blocks)]
        self.reserved = sum(segment.size for segment in self._segments)
        return before - self.reserved

    def reset_peaks(self) -> None:
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved

    def statistics(self) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.allocated, "allocated_bytes.all.peak": self.allocated_peak,
            "reserved_bytes.all.current": self.reserved, "reserved_bytes.all.peak": self.reserved_peak,
            "num_alloc_retries": self.retries, "num_ooms": self.ooms,
        }  # fmt: skip

    def _cached(self, rounded: int) -> Block | None:
        if self.expandable:
            return self._gathered(rounded)
        small = rounded <= SMALL
        fitting = [b for s in self._segments if s.small == small for b in s.blocks if b.free and b.size >= rounded]
        return min(fitting, key=lambda block: block.size, default=None)

    def _gathered(self, rounded: int) -> Block | None:
        """Free memory of any place, mapped together."""
        for segment in self._segments:
            free = [block for block in segment.blocks if block.free]
            if sum(block.size for block in free) >= rounded:
                whole = Block(sum(block.size for block in free), segment)
                segment.blocks = [*(block for block in segment.blocks if not block.free), whole]
                return whole
        return None

    def _reserve(self, rounded: int) -> Block | None:
        size = SMALL_SEGMENT if rounded <= SMALL else -(-rounded // ROUND_LARGE) * ROUND_LARGE
        if not self.expandable and SMALL < rounded < MIN_LARGE:
            size = LARGE_SEGMENT
        if size > self.free or self.reserved + size > self.fraction * self.total:
            return None
        if self.expandable and self._segments:
            segment = self._segments[0]
            segment.size += size
        else:
            segment = Segment(size, rounded <= SMALL)
            self._segments.append(segment)
        block = Block(size, segment)
        segment.blocks.append(block)
        self.reserved += size
        self.reserved_peak = max(self.reserved, self.reserved_peak)
        return block

    def _split(self, block: Block, rounded: int) -> None:
        """Cut what is left over from a block, if it is enough to be of use."""
        left = block.size - rounded
        if self.expandable or block.segment.small:
            worth = left >= BLOCK
        else:
            worth = left > SMALL
        if worth:
            block.size = rounded
            blocks = block.segment.blocks
            blocks.insert(blocks.index(block) + 1, Block(left, block.segment))
