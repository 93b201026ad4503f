import math
import sys

import pytest
import torch

from adaptbs.memory.device import HEADROOM, HostMemory, SeveralDevices, _bytes, _entry, memory_of
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
