import logging
import math
import sys

import pytest
import torch

from adaptbs.memory.device import HEADROOM, CudaMemory, HostMemory, SeveralDevices, _bytes, _entry, memory_of
from tests.helpers.cuda import FakeCuda
from tests.simulated_device import SimulatedMemory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_linux_host_is_asked():
    host = memory_of([torch.device("cpu")])
    assert 0 < host.peak() < host.limit() < math.inf
    assert host.careful, "running out would end the process"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ranks_of_a_host_share_what_is_free():
    assert HostMemory(sharers=4).limit() < HostMemory().limit()


def test_a_device_that_cannot_be_asked_is_none():
    assert memory_of([torch.device("meta")]) is None
    assert memory_of([]) is None


def test_of_several_devices_the_fullest_decides():
    small, large = SimulatedMemory(1000), SimulatedMemory(4000)
    both = SeveralDevices([small, large])
    assert both.limit() == HEADROOM * 1000
    small.take(300), large.take(1000)
    assert (both.in_use(), both.peak()) == (250, 300)
    with both.watched() as seen:
        large.take(2000)
    assert seen.peak == 3000 * 1000 / 4000
    assert both.peak() == 300, "as it was before somebody looked"


def test_entry_of_a_status_file(tmp_path):
    file = tmp_path / "status"
    file.write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert _entry(file, "VmHWM", unit=1024) == 2048 * 1024
    assert _entry(file, "VmPeak", unit=1024) is None
    assert _entry(tmp_path / "missing", "VmHWM", unit=1024) is None
    file.write_text("inactive_anon 5\ninactive_file 7\n")  # as memory.stat of a control group has it
    assert _entry(file, "inactive_file", unit=1) == 7


def test_a_control_group_without_a_limit_says_max(tmp_path):
    file = tmp_path / "memory.max"
    file.write_text("4096\n")
    assert _bytes(file) == 4096
    file.write_text("max\n")
    assert _bytes(file) is None
    assert _bytes(tmp_path / "missing") is None


NUMBERS = {"num_alloc_retries": 0, "allocated_bytes.all.current": 300, "reserved_bytes.all.current": 400}


@pytest.fixture
def asked(monkeypatch) -> list:
    """The devices that PyTorch's functions are asked about, where the current CUDA device is 1."""
    asked: list = []

    def answering(value):
        def answer(device=None):
            assert device.index is not None, "as get_per_process_memory_fraction demands"
            asked.append(device)
            return value

        return answer

    answers = {
        "mem_get_info": (600, 1000), "memory_reserved": 400, "memory_allocated": 300, "max_memory_allocated": 350,
        "get_per_process_memory_fraction": 0.5, "memory_stats": NUMBERS, "reset_peak_memory_stats": None,
    }  # fmt: skip
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, answering(value), raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    return asked


def test_a_cuda_device_without_an_index_is_the_current_one(asked):
    memory = memory_of([torch.device("cuda")])
    assert isinstance(memory, CudaMemory)
    assert (memory.limit(), memory.in_use(), memory.peak()) == (HEADROOM * 500, 300, 350)
    CudaMemory(torch.device("cuda")).limit()
    assert set(asked) == {torch.device("cuda:1")}


def test_a_device_named_twice_is_one(asked):
    assert isinstance(memory_of([torch.device("cuda"), torch.device("cuda:1")]), CudaMemory)
    assert isinstance(memory_of([torch.device("cuda:0"), torch.device("cuda:1")]), SeveralDevices)
    assert set(asked) == {torch.device("cuda:0"), torch.device("cuda:1")}


def refuses(device=None):
    raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats.")


@pytest.mark.parametrize("memory_stats", [refuses, lambda device=None: {}], ids=["raises", "is empty"])
def test_an_allocator_without_statistics_is_gone_on_without(asked, monkeypatch, caplog, memory_stats):
    tried = []

    def counted(device=None):
        tried.append(device)
        return memory_stats(device)

    monkeypatch.setattr(torch.cuda, "memory_stats", counted)
    with caplog.at_level(logging.INFO, "adaptbs"):
        assert memory_of([torch.device("cuda")]) is None
    assert tried == [torch.device("cuda:1")]
    assert [record.message for record in caplog.records] == [
        "the allocator of cuda:1 gives no statistics, so its memory is not read"
    ]


@pytest.mark.parametrize("peak", [300 << 10, 64 << 20, (64 << 20) + (3 << 19), (191 << 20) + 5000, 39 << 19])
@pytest.mark.parametrize("expandable", [False, True])
def test_who_watches_leaves_the_peak_as_it_was(peak, expandable):
    """To a block: one from which no more than 1 MiB would be left over is not split."""
    with FakeCuda(expandable=expandable) as cuda:
        memory = CudaMemory(torch.device("cuda"))
        cuda.memory.take(1 << 20)
        cuda.memory.take(peak)
        cuda.memory.give_back(peak)
        torch.cuda.empty_cache()
        before, reserved = memory.peak(), torch.cuda.memory_reserved()
        with memory.watched() as seen:
            cuda.memory.take(1 << 18)
            cuda.memory.give_back(1 << 18)
        assert seen.peak == memory.in_use() + (1 << 18)
        assert 0 <= memory.peak() - before <= 1 << 20
        assert torch.cuda.memory_reserved() <= reserved + (2 << 20), "what lifts the peak is given back"
