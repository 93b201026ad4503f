"""The clock of a run on a CUDA device, which tests/helpers/cuda.py stands for."""

import pytest
import torch

from adaptbs.ranks import Ranks
from adaptbs.timing.clock import AgreedClock
from adaptbs.timing.device_clock import AFTERMATH_IN_STEP, PER_STEP, READ_EVERY, DeviceClock, Stopwatch
from tests.helpers.cuda import LAUNCH, FakeCuda

CUDA = torch.device("cuda")


def run(cuda: FakeCuda, clock: DeviceClock, steps: int, device: float, host: float = 0.0, waits: bool = False) -> None:
    """So many steps that take the device and the host so many seconds each."""
    for _ in range(steps):
        cuda.now += host
        cuda.queue(device)
        if waits:
            torch.cuda.synchronize()  # as `loss.item()` does
        clock.step(8)


@pytest.mark.parametrize(
    ("device", "host", "waits", "share"),
    [
        (1e-3, 1e-4, False, 0.0),  # the GPU is the bottleneck
        (1e-4, 1e-3, False, 1.0),  # the host is
        (1e-3, 1e-4, True, 1.0),  # the GPU has to wait for the host's work after each step
    ],
)
def test_work_on_the_host_costs_time_where_the_device_waits_for_it(device, host, waits, share):
    with FakeCuda() as cuda:
        clock = DeviceClock(CUDA)
        clock.start()
        run(cuda, clock, 200, device, host, waits)
        clock.read()
        assert clock.per_step == pytest.approx(share * PER_STEP, abs=0.03 * PER_STEP)
        assert clock.aftermath == pytest.approx(share * AFTERMATH_IN_STEP, abs=0.03 * AFTERMATH_IN_STEP)


def test_it_follows_a_batch_that_grows_until_the_device_is_the_bottleneck():
    with FakeCuda() as cuda:
        clock = DeviceClock(CUDA)
        clock.start()
        run(cuda, clock, 100, 1e-4, 1e-3)
        clock.read()
        assert clock.per_step == PER_STEP
        clock.read()
        assert clock.per_step == PER_STEP, "nothing new is known"
        run(cuda, clock, 100, 3e-3, 1e-3)
        clock.read()
        assert clock.per_step < 0.05 * PER_STEP


def test_a_cpu_pays_for_every_step():
    clock = DeviceClock(torch.device("cpu"))
    clock.start()
    clock.step(8)
    clock.read()
    assert clock.per_step == PER_STEP


def test_ranks_agree_on_the_cost_of_a_step():
    class Second(Ranks):
        def agree(self, value):
            return (value[0], 7.0, 8.0) if isinstance(value, tuple) else value

    clock = DeviceClock(torch.device("cpu"))
    agreed = AgreedClock(clock, Second(1, 2, False))
    agreed.read()
    assert (agreed.per_step, agreed.aftermath) == (7.0, 8.0)


def test_no_more_events_are_kept_than_of_a_thousand_steps():
    with FakeCuda() as cuda:
        clock = DeviceClock(CUDA)
        clock.start()
        most = 0
        for _ in range(50):
            run(cuda, clock, READ_EVERY // 10, 1e-4, 1e-4)
            with clock.measuring(8):
                cuda.queue(2e-4)
            most = max(most, len(clock._steps))
        assert most <= READ_EVERY and cuda.waits.found == []
        timings = clock.read()
        assert len(timings.steps) == 5 * READ_EVERY
        assert len(timings.measurements) == 49  # the last one's step has not ended
        assert sum(seconds for _, seconds in timings.steps) == pytest.approx(5 * READ_EVERY * (1e-4 + LAUNCH), rel=0.05)
        assert clock.read().steps == []


def test_a_device_that_is_far_behind_is_not_waited_for():
    with FakeCuda() as cuda:
        clock = DeviceClock(CUDA)
        clock.start()
        run(cuda, clock, READ_EVERY + 10, 1.0)
        assert cuda.waits.found == [] and cuda.now < 1
        assert len(clock.read().steps) == READ_EVERY + 10
        assert [what for what, _ in cuda.waits.found] == ["synchronize"]


def test_a_stopwatch_is_bound_to_the_device_of_its_first_mark():
    where = torch.device("cpu")
    watch = Stopwatch(lambda: where)  # made before model.cuda()
    where = CUDA
    with FakeCuda() as cuda:
        begin = watch.mark()
        cuda.queue(2.0)
        end = watch.mark()
        assert not watch.reached(end) and cuda.now < 1
        watch.wait()
        assert watch.seconds(begin, end) == pytest.approx(2 + LAUNCH)


def test_a_decision_that_the_device_reaches_while_it_is_asked_is_not_lost(monkeypatch):
    with FakeCuda() as cuda:
        clock = DeviceClock(CUDA)
        clock.start()
        with clock.deciding():
            cuda.queue(1.0)
        answers = iter([False])
        monkeypatch.setattr(clock._watch, "reached", lambda _: next(answers, True))
        clock._take_in()
        assert clock.read().deciding == pytest.approx(1.0, abs=0.01)
