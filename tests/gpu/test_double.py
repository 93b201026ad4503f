"""The double of CUDA in tests/helpers does what the device does."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.helpers.allocator import CachingAllocator, MiB

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SEQUENCES = {
    "one small": [1],
    "small ones that share a segment": [600_000, 600_000, 600_000],
    "one of each pool": [MiB, MiB + 1],
    "a large one that is not split": [20 * MiB - MiB // 2],
    "one that is its own segment": [65 * MiB],
    "given back and taken again": [30 * MiB, -30 * MiB, 20 * MiB],
    "pieces that do not fit together": [30 * MiB, 30 * MiB, -30 * MiB, -30 * MiB, 60 * MiB],
}


@pytest.mark.parametrize("sizes", SEQUENCES.values(), ids=list(SEQUENCES))
def test_the_allocators_blocks_and_segments(sizes):
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")
    before, held = torch.cuda.memory_stats(), {}
    double = CachingAllocator(8 << 30)
    for size in sizes:
        if size > 0:
            held.setdefault(size, []).append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            double.take(size)
        else:
            held[-size].pop()
            double.give_back(-size)
    after = torch.cuda.memory_stats()
    assert {n: after[n] - before[n] for n in names[:2]} == {n: double.statistics()[n] for n in names[:2]}
    assert after[names[2]] - before[names[0]] == double.statistics()[names[2]]


def test_an_event_is_reached_when_the_work_before_it_is_done():
    a = torch.randn(8192, 8192, device="cuda")
    (a @ a).sum().item()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        a @ a
    end.record()
    assert not end.query()
    with pytest.raises(RuntimeError):
        begin.elapsed_time(end)
    torch.cuda.synchronize()
    assert begin.query() and end.query() and begin.elapsed_time(end) > 0
