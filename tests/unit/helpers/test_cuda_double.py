"""The test double of CUDA does what CUDA does, and covers all that the package calls."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import adaptbs
from tests.helpers.allocator import BLOCK, CachingAllocator, MiB
from tests.helpers.cuda import LAUNCH, FakeCuda
from tests.helpers.out_of_memory import WORDINGS
from tests.helpers.waits import Waits

PACKAGE = Path(adaptbs.__file__).parent


def called(source: str) -> set[str]:
    """The names in torch.cuda that a file uses."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in found if ast.unparse(node.value) == "torch.cuda"}


def test_all_that_the_package_calls_is_there():
    used = set().union(*(called(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")))
    assert used and used <= FakeCuda().functions().keys()
    assert called("torch.cuda.synchronize(0)") == {"synchronize"}


def test_torch_is_as_it_was_afterwards():
    before = {name: getattr(torch.cuda, name) for name in FakeCuda().functions()}
    with FakeCuda():
        assert torch.cuda.is_available()
    assert {name: getattr(torch.cuda, name) for name in before} == before
    assert torch.zeros(1).device.type == "cpu"


def test_work_is_queued_and_events_tell_the_devices_time():
    with FakeCuda() as cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(3):
            cuda.queue(2.0)
        end.record()
        assert cuda.now == pytest.approx(3 * LAUNCH)
        assert begin.query() and not end.query()
        with pytest.raises(RuntimeError, match="not ready"):
            begin.elapsed_time(end)
        torch.cuda.synchronize()
        assert begin.elapsed_time(end) == pytest.approx(6000, rel=1e-4) and cuda.now == pytest.approx(6 + LAUNCH)
        assert len(cuda.waits.found) == 1


def test_a_device_that_waits_for_the_host_does_nothing_meanwhile():
    with FakeCuda() as cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cuda.queue(0.1)
        begin.record()
        cuda.now += 1.0  # the host is busy with something else
        cuda.queue(0.1)
        end.record()
        torch.cuda.synchronize()
        assert begin.elapsed_time(end) == pytest.approx(1000 + 100 - 100 + LAUNCH * 1000, abs=1)


# What `allocated_bytes` counts is the block. One of the large pool is split only if more than 1 MiB is left over.
@pytest.mark.parametrize(
    ("asked", "block", "segment"),
    [
        (1, BLOCK, 2 * MiB),
        (513, 2 * BLOCK, 2 * MiB),
        (MiB, MiB, 2 * MiB),
        (MiB + 1, MiB + BLOCK, 20 * MiB),
        (19 * MiB + MiB // 2, 20 * MiB, 20 * MiB),
        (64 * MiB, 64 * MiB, 64 * MiB),
        (65 * MiB, 66 * MiB, 66 * MiB),
    ],
)
def test_blocks_and_segments(asked, block, segment):
    memory = CachingAllocator(1 << 30)
    memory.take(asked)
    assert (memory.allocated, memory.reserved) == (block, segment)
    memory.give_back(asked)
    assert (memory.allocated, memory.reserved, memory.allocated_peak) == (0, segment, block)
    assert memory.release() == segment and memory.reserved == 0


def test_memory_in_pieces_is_of_no_use_unless_segments_expand():
    took = {}
    for expandable in (False, True):
        memory = CachingAllocator(1 << 30, expandable=expandable)
        for _ in range(4):
            memory.take(30 * MiB)
        for _ in range(4):
            memory.give_back(30 * MiB)
        memory.take(100 * MiB)
        took[expandable] = memory.reserved
    assert took == {False: 220 * MiB, True: 120 * MiB}


def test_cached_memory_is_given_back_before_it_runs_out():
    memory = CachingAllocator(100 * MiB)
    memory.take(60 * MiB)
    memory.give_back(60 * MiB)
    memory.take(80 * MiB)
    assert (memory.retries, memory.ooms) == (1, 0)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 40"):
        memory.take(40 * MiB)
    assert memory.ooms == 1


def test_the_share_of_a_process_and_others_memory_are_not_there():
    memory = CachingAllocator(100 * MiB)
    memory.fraction = 0.5
    with pytest.raises(torch.OutOfMemoryError):
        memory.take(60 * MiB)
    memory.fraction, memory.others = 1.0, 60 * MiB
    with pytest.raises(torch.OutOfMemoryError):
        memory.take(60 * MiB)


def test_tensors_made_on_the_device_take_its_memory_until_they_are_gone():
    with FakeCuda() as cuda:
        model = cuda.place(nn.Linear(1024, 1024))
        same = model.weight
        rest = cuda.memory.allocated
        assert same.device == torch.device("cuda:0") and rest >= 4 * MiB
        x = torch.randn(256, 1024).to("cuda", non_blocking=True)
        hidden = model(x)
        assert hidden.is_cuda and cuda.memory.allocated == rest + 2 * MiB
        hidden.sum().backward()
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.step()
        assert model.weight is same and cuda.waits.found == []
        del hidden, x
        assert cuda.memory.allocated_peak > cuda.memory.allocated >= 4 * rest - 64 * BLOCK  # gradient and two averages


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda t: t.sum().item(), 1),
        (lambda t: float(t.sum()), 1),
        (lambda t: t.tolist(), 1),
        (lambda t: t.cpu(), 1),
        (lambda t: t.to("cpu"), 1),
        (lambda t: t.to("cpu", non_blocking=True), 0),
        (lambda t: bool((t > 0).all()), 1),
        (lambda t: t.nonzero(), 1),
        (lambda t: t * 2, 0),
        (lambda t: t.detach().sum(), 0),
        (lambda t: torch.tensor(1.0, device="cuda"), 1),
        (lambda t: torch.zeros(3, device="cuda"), 0),
    ],
)
def test_a_value_that_is_read_is_waited_for(read, waits):
    with FakeCuda() as cuda:
        tensor = torch.ones(3, device="cuda")
        read(tensor)
        assert len(cuda.waits.found) == waits


def test_the_meta_device_counts_copies_and_gives_no_value():
    with Waits() as waits:
        there = torch.empty(3, device="meta")
        there.to("cpu")
        there.copy_(torch.ones(3))
        there * 2
        assert len(waits.found) == 2
        with pytest.raises(RuntimeError):
            there.sum().item()


def test_every_wording_is_one_of_some_library():
    assert len(WORDINGS) > 30 and all(WORDINGS.values())
