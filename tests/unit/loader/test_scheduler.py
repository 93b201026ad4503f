import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from adaptbs.loader.driven_scheduler import drive, release
from adaptbs.loader.learnt_driver import LearntDriver
from adaptbs.loader.scheduler import SchedulerDriver
from adaptbs.loader.scheduler_steps import run_epochs, steps_left


@contextmanager
def iteration(place: SchedulerDriver) -> Iterator[None]:
    place.begin_iteration()
    try:
        yield
    finally:
        place.end_iteration()


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)


def due(place: SchedulerDriver, *batches: int, every: int = 1) -> list[int]:
    """Steps due at the calls of an epoch with these batches, made after every `every`-th."""
    steps, at = [], 0
    with iteration(place):
        for i, size in enumerate(batches, 1):
            place.moved(at, at + size)
            at += size
            if i % every == 0:
                steps.append(place.take_steps())
    return steps


def test_at_the_start_size_every_call_is_one_step():
    assert due(LearntDriver(4, epoch_samples=10, epoch_steps=3), 4, 4, 2) == [1, 1, 1]


def test_a_batch_of_twice_the_size_is_two_steps():
    assert due(LearntDriver(4, epoch_samples=32, epoch_steps=8), 4, 4, 8, 16) == [1, 1, 2, 4]


def test_all_steps_are_made_by_the_end_of_the_epoch():
    # 13 samples in fours are 4 steps: floor(9/4) = 2 after 9 samples, and the 3rd and 4th at the end
    assert due(LearntDriver(4, epoch_samples=13, epoch_steps=4), 4, 5, 4) == [1, 1, 2]


def test_a_smaller_batch_waits():
    assert due(LearntDriver(4, epoch_samples=8, epoch_steps=2), 4, 2, 2) == [1, 0, 1]


def test_a_call_every_second_batch_stands_for_two():
    assert due(LearntDriver(4, epoch_samples=32, epoch_steps=8), 4, 4, 4, 4, 8, 8, every=2) == [1, 1, 2]
    assert due(LearntDriver(4, epoch_samples=40, epoch_steps=10), 4, 8, 4, 8, 8, 8, every=2) == [1, 2, 2]
    # 12 samples are three batches of the fixed run, so half a step is owed to the next call
    assert due(LearntDriver(4, epoch_samples=80, epoch_steps=20), 4, 4, 4, 4, 8, 4, 8, 4, every=2) == [1, 1, 1, 2]


@pytest.mark.parametrize("called", [(4, 8, 10), (2, 3, 4, 5), (5, 6, 7, 8, 9, 10)], ids=["every 4th", "late", "later"])
def test_while_the_batch_stays_every_call_is_one_step_wherever_it_is_made(called):
    place = LearntDriver(4, epoch_samples=40, epoch_steps=10)
    for _ in range(3):
        with iteration(place):
            for i in range(1, 11):
                place.moved(4 * (i - 1), 4 * i)
                if i in called:
                    assert place.take_steps() == 1


def test_a_call_once_an_epoch_is_one_step_also_where_the_batch_grew_or_the_epoch_was_broken_off():
    place = LearntDriver(4, epoch_samples=16, epoch_steps=4)
    for batches in ((4, 4, 4, 4), (4, 4, 8), (8, 8), (16,), (8,)):
        due(place, *batches, every=99)
        assert place.take_steps() == 1


def test_calls_before_the_first_batch_are_one_step_each():
    place = LearntDriver(4, epoch_samples=16, epoch_steps=4)
    assert [place.take_steps() for _ in range(3)] == [1, 1, 1]
    assert due(place, 4, 4, 8) == [1, 1, 2]


def test_an_epoch_broken_off_does_not_lend_its_samples_to_the_next():
    place = LearntDriver(4, epoch_samples=16, epoch_steps=4)
    due(place, 4, 4)
    assert due(place, 4, 4, 8) == [1, 1, 2]


def test_a_look_into_the_loader_does_not_disturb_the_loop_around_it():
    place = LearntDriver(4, epoch_samples=16, epoch_steps=4)
    with iteration(place):
        place.moved(0, 4)
        assert place.take_steps() == 1
        assert due(place, 4) == [1]
        place.moved(4, 8)
        assert place.take_steps() == 1
        place.moved(8, 16)
        assert place.take_steps() == 2


def test_a_place_goes_on_from_its_state():
    place, other = (LearntDriver(4, epoch_samples=16, epoch_steps=4) for _ in range(2))
    due(place, 4, 8, every=2)  # a step and a half: one made, half owed
    other.load_state_dict(place.state_dict())
    assert due(other, 4, 8, every=2) == due(place, 4, 8, every=2) == [2]


class Told:
    """Stands for a driver: each call stands for the next of these steps."""

    grown = True

    def __init__(self, *steps: int) -> None:
        self.steps = itertools.cycle(steps)

    def take_steps(self) -> int:
        return next(self.steps)

    def place(self, said: float, name: str = "step") -> float:
        return said


def test_a_driven_scheduler_makes_as_many_steps_as_are_due():
    scheduler = StepLR(optimizer(), step_size=1, gamma=0.5)
    scheduler.optimizer.step()
    drive(scheduler, Told(1, 0, 2))
    rates = []
    for _ in range(3):
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == [0.5, 0.5, 0.125]


@pytest.mark.parametrize("due", [1, 4, 7])
def test_one_driven_past_its_end_stays_there_and_says_so_once(due, caplog):
    scheduler = OneCycleLR(optimizer(), max_lr=1.0, total_steps=10)
    scheduler.optimizer.step()
    drive(scheduler, Told(due))
    for i in range(1, 14):
        assert not caplog.text
        scheduler.step()
        assert scheduler.last_epoch == min(i * due, 10)
        if i * due >= 10:
            break
    for _ in range(3):
        scheduler.step()
    assert scheduler.last_epoch == 10
    assert caplog.text.count("come to its end") == 1
    assert f"made {i + 1} calls" in caplog.text


def test_a_call_too_many_at_the_first_batch_size_raises_as_ever():
    scheduler = OneCycleLR(optimizer(), max_lr=1.0, total_steps=2)
    scheduler.optimizer.step()
    told = Told(1)
    told.grown = False
    drive(scheduler, told)
    scheduler.step(), scheduler.step()
    with pytest.raises(ValueError, match="total steps"):
        scheduler.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda o: SequentialLR(o, [LinearLR(o), OneCycleLR(o, 1.0, total_steps=7)], milestones=[3]),
        lambda o: ChainedScheduler([OneCycleLR(o, 1.0, total_steps=10), StepLR(o, 1)]),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_the_end_of_a_schedule_inside_of_another_is_known(make):
    scheduler = make(optimizer())
    assert steps_left(scheduler) == 10
    drive(scheduler, Told(4))
    for left in (6, 2, 0, 0):
        scheduler.step()
        assert steps_left(scheduler) == left


def test_a_driven_scheduler_is_still_itself():
    scheduler = OneCycleLR(optimizer(), max_lr=1.0, total_steps=10)
    before = copy.deepcopy(scheduler.state_dict())
    drive(scheduler, Told(1))
    assert isinstance(scheduler, OneCycleLR)
    assert type(scheduler).__name__ == "OneCycleLR"
    assert scheduler.state_dict() == before


def test_driving_again_replaces_the_first():
    scheduler = StepLR(optimizer(), step_size=1, gamma=0.5)
    scheduler.optimizer.step()
    drive(scheduler, Told(5))
    drive(scheduler, Told(1))
    scheduler.step()
    assert scheduler.last_epoch == 1


def test_one_that_is_released_is_a_stock_scheduler_where_it_stands():
    scheduler, mine, anothers = StepLR(optimizer(), step_size=1, gamma=0.5), Told(3), Told(1)
    scheduler.optimizer.step()
    drive(scheduler, mine)
    scheduler.step()
    release(scheduler, anothers)
    assert type(scheduler) is not StepLR, "it goes by another driver"
    release(scheduler, mine)
    scheduler.step()
    assert type(scheduler) is StepLR and scheduler.last_epoch == 4
    release(scheduler, mine)


def test_another_scheduler_of_the_same_class_is_not_driven():
    driven, free = (StepLR(optimizer(), step_size=1) for _ in range(2))
    drive(driven, Told(0))
    assert type(free) is StepLR


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_an_explicit_epoch_is_obeyed():
    scheduler = StepLR(optimizer(), step_size=1, gamma=0.5)
    scheduler.optimizer.step()
    drive(scheduler, Told(0))
    scheduler.step(3)
    assert scheduler.last_epoch == 3


def test_a_scheduler_that_follows_a_metric_is_left_alone():
    scheduler = ReduceLROnPlateau(optimizer())
    drive(scheduler, Told(0))
    assert type(scheduler) is ReduceLROnPlateau


@pytest.mark.parametrize(
    ("make", "epochs"),
    [
        (lambda o: OneCycleLR(o, max_lr=1.0, total_steps=30), 3),
        (lambda o: OneCycleLR(o, max_lr=1.0, epochs=2, steps_per_epoch=10), 2),
        (lambda o: CosineAnnealingLR(o, T_max=40), 4),
        (lambda o: CosineAnnealingLR(o, T_max=5), 5),  # less than the steps of an epoch, so these are epochs
        (lambda o: CosineAnnealingLR(o, T_max=25), None),  # neither whole epochs of steps nor fewer than one
        (lambda o: StepLR(o, step_size=7), None),
        (lambda o: LambdaLR(o, lambda step: 1.0), None),
    ],
)
def test_the_length_of_the_run_as_the_scheduler_knows_it(make, epochs):
    assert run_epochs(make(optimizer()), epoch_steps=10) == epochs


def test_a_look_at_the_last_batch_of_a_loop_that_fetches_one_ahead_leaves_its_call_inside_of_the_loop():
    """The iteration is over by then, so that the call was taken for one that is made once an epoch."""
    place = LearntDriver(4, 40, 10)
    assert due(place, 4, 4, 16, 16) == [1, 1, 4, 4]
    place.begin_iteration()
    place.moved(40, 56)
    assert place.take_steps() == 4
    place.moved(56, 80)
    place.end_iteration()
    with iteration(place):  # the look
        pass
    place.take_back()
    assert place.take_steps() == 6
