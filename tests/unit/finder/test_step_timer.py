import pytest
import torch
from torch import nn

from adaptbs.finder import step_timer
from adaptbs.finder.step_timer import measure_step_time
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.timing.step_time import ENOUGH, WARM_UP, StepTime
from tests.helpers.cuda import LAUNCH, FakeCuda


class Watch:
    """A clock that the model turns on: a step of B samples takes 3 + B/2 seconds."""

    now = 0.0

    def __init__(self, device) -> None:
        Watch.now = 0.0

    def mark(self) -> float:
        return Watch.now

    def wait(self) -> None:
        return None

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Sizes of the steps made, in order."""
    monkeypatch.setattr(step_timer, "Stopwatch", Watch)
    monkeypatch.setattr(step_timer, "LONG", 1e9)
    return []


def measure(steps: list[int], batches: list[int], fails=lambda size: None, optimizer=None):
    model = nn.Linear(1, 1)

    def loss(model, x):
        fails(len(x))
        steps.append(len(x))
        Watch.now += 3 + len(x) / 2
        return model(x).mean()

    make = optimizer or (lambda: torch.optim.SGD(model.parameters(), lr=0.0))
    return measure_step_time(model, BatchLoss(batch_loss=loss), make, [torch.ones(size, 1) for size in batches])


def test_four_sizes_take_turns(steps):
    assert measure(steps, [8] * 5) == pytest.approx(StepTime(3, 0.5))
    assert steps[:WARM_UP] == [8] * WARM_UP
    assert steps[WARM_UP : WARM_UP + 3] == [16, 32, 4]
    assert steps[WARM_UP + 3 :] == [8, 16, 32, 4] * ENOUGH


def test_no_more_than_the_block_holds_of_equal_batches(steps):
    assert measure(steps, [8, 8, 5, 8]) == pytest.approx(StepTime(3, 0.5))
    assert set(steps) == {4, 8, 16}


def test_half_of_a_batch_is_at_least_two_samples(steps):
    measure(steps, [3, 3])
    assert set(steps) == {3, 6}


def test_it_stops_at_the_first_size_that_does_not_fit_and_keeps_the_others(steps):
    def out_of_memory(size):
        if size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert measure(steps, [8] * 4, out_of_memory) == pytest.approx(StepTime(3, 0.5))
    assert set(steps) == {4, 8, 16}


def test_no_larger_step_is_tried_once_one_takes_long(steps, monkeypatch):
    monkeypatch.setattr(step_timer, "LONG", 11.0)  # as long as one of 16
    measure(steps, [8] * 4)
    assert set(steps) == {4, 8, 16}


def test_quick_steps_are_taken_more_often(steps, monkeypatch):
    monkeypatch.setattr(step_timer, "BUDGET", 400.0)  # a round of 8, 16 and 32 takes 7 + 11 + 19 seconds
    measure(steps, [8] * 4)
    assert steps[WARM_UP + 3 :] == [8, 16, 32, 4] * 10


def test_nothing_is_known_of_one_size_or_of_steps_that_fail(steps):
    def refuses(size):
        raise ValueError("no loss without the callbacks")

    def no_optimizer():
        raise TypeError("it needs more than an lr")

    assert measure(steps, [3]) is None
    assert measure(steps, [8] * 4, refuses) is None
    assert measure(steps, [8] * 4, optimizer=no_optimizer) is None


def test_an_interrupt_is_not_held_back(steps):
    def interrupted(size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(steps, [8] * 4, interrupted)


def test_the_real_clock():
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1))
    loss = BatchLoss(batch_loss=lambda model, x: model(x).square().mean())
    blocks = [torch.randn(256, 64) for _ in range(4)]
    took = measure_step_time(model, loss, lambda: torch.optim.SGD(model.parameters(), lr=0.0), blocks)
    assert took is not None
    assert 0 < took(256) < 1
    assert took(1024) >= took(128)


class QueuedSteps:
    """Training steps as kernels: of each its microseconds on the device, for a sample and in any case."""

    def __init__(self, cuda: FakeCuda, fixed: list[float], of_a_sample: float, optimizer: list[float]) -> None:
        self.cuda, self.fixed, self.of_a_sample, self.of_optimizer = cuda, fixed, of_a_sample, optimizer
        self.state: dict = {}

    def loss(self, model, x):
        for kernel in self.fixed:
            self.cuda.queue(1e-6 * kernel * (1 + self.of_a_sample * len(x)))
        return model(x).mean()

    def zero_grad(self) -> None:
        return None

    def step(self) -> None:
        for kernel in self.of_optimizer:
            self.cuda.queue(1e-6 * kernel)

    def in_training(self, samples: int) -> float:
        """Seconds of a step among many that no one waits for."""
        kernels = [1e-6 * kernel * (1 + self.of_a_sample * samples) for kernel in self.fixed]
        return max(LAUNCH * len(self.fixed + self.of_optimizer), sum(kernels) + 1e-6 * sum(self.of_optimizer))


@pytest.mark.parametrize(
    ("of_a_sample", "optimizer"),
    [
        (0.01, [3.0] * 30),  # the host launches kernels more slowly than the device runs them
        (0.01, [900.0]),  # while a large kernel runs, the next step is launched
        (2.0, [3.0] * 30),  # the device is busy all the time
    ],
)
def test_steps_are_timed_as_they_are_queued_in_training(of_a_sample, optimizer):
    with FakeCuda(kernels=False) as cuda:
        model = cuda.place(nn.Linear(1, 1))
        steps = QueuedSteps(cuda, [2.0] * 120, of_a_sample, optimizer)
        block = [torch.ones(8, 1) for _ in range(4)]
        took = measure_step_time(model, BatchLoss(batch_loss=steps.loss), lambda: steps, block)
    for samples in (4, 8, 16, 32):
        assert took(samples) == pytest.approx(steps.in_training(samples), rel=0.06)
