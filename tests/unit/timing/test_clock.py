import pytest
import torch

from adaptbs.timing.clock import MEASURING, MEASURING_IN_STEP, GivenClock
from adaptbs.timing.device_clock import AFTERMATH, DeviceClock, Stopwatch
from adaptbs.timing.step_time import StepTime


def test_a_given_clock_says_what_it_was_given():
    clock = GivenClock(StepTime(1.0, 0.5))
    clock.start()
    with clock.measuring(4):
        pass
    clock.step(4)
    with clock.deciding():
        pass
    clock.step(2)
    timings = clock.read()
    assert timings.deciding == 0
    assert timings.steps == [(4, 3.0), (2, 2.0)]
    assert timings.measurements == [3.0 * MEASURING]


def test_what_was_read_is_not_read_again():
    clock = GivenClock(StepTime(1.0, 0.5))
    clock.step(4)
    clock.read()
    assert clock.read().steps == []


@pytest.fixture
def clock(monkeypatch):
    """A host clock that is asked at 0, 1, 3, 10, 11, ... seconds."""
    moments = iter([0.0, 1.0, 3.0, 10.0, 11.0, 15.0])
    monkeypatch.setattr("adaptbs.timing.device_clock.time.perf_counter", lambda: next(moments))
    return DeviceClock(torch.device("cpu"))


def test_measuring_is_not_charged_to_the_step(clock):
    clock.start()  # at 0
    with clock.measuring(8):  # from 1 to 3
        pass
    clock.step(8)  # at 10
    clock.step(16)  # at 11
    timings = clock.read()
    assert timings.steps == [(8, 8.0), (16, 1.0)]
    assert timings.measurements == [2.0 * AFTERMATH]
    assert clock.read().steps == []


def test_a_pass_beside_a_measured_step_is_no_part_of_what_a_measurement_costs(clock):
    clock.start()  # at 0
    clock.measuring_step()
    with clock.measuring(8):  # from 1 to 3
        pass
    clock.step(8)  # at 10
    timings = clock.read()
    assert (timings.steps, timings.measurements) == ([], [])
    assert timings.measured_steps == [(8, 8.0)]
    assert timings.deciding == 2.0


def test_a_given_clock_counts_a_measured_step_once():
    clock = GivenClock(StepTime(1.0, 0.5))
    clock.measuring_step()
    with clock.measuring(4):
        pass
    clock.step(4)
    assert clock.read().measurements == [3.0 * MEASURING_IN_STEP]


def test_deciding_is_not_charged_to_the_step_after_it(clock):
    clock.start()  # at 0
    clock.step(8)  # at 1
    with clock.deciding():  # from 3 to 10
        assert clock.read().steps == [(8, 1.0)]
    clock.step(8)  # at 11
    timings = clock.read()
    assert timings.steps == [(8, 1.0)]
    assert timings.deciding == 7.0
    assert clock.read().deciding == 0


def test_deciding_at_the_end_of_an_epoch_is_not_forgotten(clock):
    clock.start()  # at 0
    with clock.deciding():  # from 1 to 3
        pass
    clock.start()  # at 10
    clock.step(8)  # at 11
    timings = clock.read()
    assert timings.steps == [(8, 1.0)]
    assert timings.deciding == 2.0


def test_time_before_the_start_is_not_counted(clock):
    clock.step(8)  # at 0, but nothing had begun
    clock.start()  # at 1
    clock.step(8)  # at 3
    clock.start()  # at 10: an epoch's validation lay between
    clock.step(8)  # at 11
    assert clock.read().steps == [(8, 2.0), (8, 1.0)]


@pytest.mark.parametrize(("given", "used"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_a_stopwatch_has_a_device_with_an_index(given, used, monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            asked.append(stream)

    asked: list = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    watch = Stopwatch(torch.device(given))
    watch.mark()
    watch.wait()
    assert asked == [torch.device(used)] * 2
