import math
import sys

import pytest
import torch

from adaptbs.memory import HEADROOM, _bytes, _entry, affordable, largest_affordable


def test_as_much_free_as_in_use_allows_almost_the_double():
    assert largest_affordable(100, in_use=1000, free=1000) == pytest.approx(100 * (1 + HEADROOM))


def test_no_free_memory_allows_what_runs_already():
    assert largest_affordable(100, in_use=1000, free=0) == 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_linux_host_is_asked():
    assert 100 <= affordable(100, torch.device("cpu")) < math.inf


def test_a_device_that_cannot_be_asked_sets_no_limit():
    assert affordable(100, torch.device("meta")) == math.inf


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
