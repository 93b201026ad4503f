import contextlib

import pytest
import torch

from adaptbs.timing.clock import Timings
from adaptbs.timing.overhead import HICCUP, HICCUP_STEPS, OverheadBudget


class Scripted:
    """A clock that says what it is told."""

    per_step = aftermath = 0.0

    def __init__(self) -> None:
        self.timings = Timings()

    def start(self) -> None: ...
    def step(self, batch_size: int) -> None: ...
    def measuring_step(self) -> None: ...

    def measuring(self, batch_size: int):
        return contextlib.nullcontext()

    def deciding(self):
        return contextlib.nullcontext()

    def read(self) -> Timings:
        timings, self.timings = self.timings, Timings()
        return timings


def spent(*measured: float, step: float = 1.0) -> float:
    """Seconds charged for steps that were measured and took so long, after a few that were not."""
    budget, clock = OverheadBudget(None, torch.device("cpu"), 8, 0.02), Scripted()
    budget.use_clock(clock)
    for seconds in ([], measured):
        clock.timings.steps = [(8, step)] * 10
        clock.timings.measured_steps = [(8, each) for each in seconds]
        budget.read()
    return budget.spent.seconds


def test_what_a_measured_step_takes_longer_is_charged_but_for_the_first():
    assert spent(9.0, 1.5, 1.4, 1.6) == pytest.approx(0.5 + 0.4 + 0.6)


def test_a_measured_step_is_charged_what_it_slows_down_the_steps_after_it():
    budget, clock = OverheadBudget(None, torch.device("cpu"), 8, 0.02), Scripted()
    budget.use_clock(clock)
    clock.aftermath = 0.25
    for seconds in ([1.5], [1.5, 1.5]):
        clock.timings.steps = [(8, 1.0)] * 10
        clock.timings.measured_steps = [(8, each) for each in seconds]
        budget.read()
    assert budget.spent.seconds == pytest.approx(2 * (0.5 + 0.25)), "the first warms up"


def test_a_hiccup_of_the_machine_in_a_measured_step_is_not_charged_to_measuring():
    budget, clock = OverheadBudget(None, torch.device("cpu"), 8, 0.02), Scripted()
    budget.use_clock(clock)
    for measured in ([1.5] * 5, [1 + 30.0], [1.5]):
        clock.timings.steps = [(8, 1.0)] * 10
        clock.timings.measured_steps = [(8, each) for each in measured]
        budget.read()
    assert budget.spent.seconds == pytest.approx(5 * 0.5 + max(HICCUP * 0.5, HICCUP_STEPS * 1.0))


def test_a_batch_that_doubled_is_charged_what_its_measurements_take():
    budget, clock = OverheadBudget(None, torch.device("cpu"), 8, 0.02), Scripted()
    budget.use_clock(clock)
    for size, step in ((8, 1.0), (16, 2.0), (32, 4.0)):
        clock.timings.steps = [(size, step)] * 10
        clock.timings.measured_steps = [(size, 1.8 * step)] * 4
        budget.read()
    assert budget.spent.seconds == pytest.approx(0.8 * (3 * 1 + 4 * 2 + 4 * 4))
