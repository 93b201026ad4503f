import functools

import pytest
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from adaptbs.loader.run_length import RunLength
from adaptbs.loader.scheduler_steps import Total, total_of, whole_epochs


def optimizer() -> SGD:
    return SGD(nn.Linear(1, 1).parameters(), lr=1.0)


def one_cycle(o, total):
    return schedulers.OneCycleLR(o, 1.0, total_steps=total)


def cosine(o, total):
    return schedulers.CosineAnnealingLR(o, total)


def rate(step, num_training_steps):
    return 1.0


@pytest.mark.parametrize(
    ("make", "total"),
    [
        (lambda o: one_cycle(o, 30), Total(30, "total_steps", True)),
        (lambda o: cosine(o, 30), Total(30, "T_max", False)),
        (
            lambda o: schedulers.LambdaLR(o, functools.partial(rate, num_training_steps=30)),
            Total(30, "num_training_steps", True),
        ),
        (
            lambda o: schedulers.SequentialLR(o, [schedulers.LinearLR(o), cosine(o, 25)], milestones=[5]),
            Total(30, "T_max", False),
        ),
        (
            lambda o: schedulers.ChainedScheduler([schedulers.StepLR(o, 3), cosine(o, 99), one_cycle(o, 30)]),
            Total(30, "total_steps", True),
        ),
        (lambda o: schedulers.StepLR(o, 7), None),
        (lambda o: schedulers.CosineAnnealingWarmRestarts(o, 7), None),
    ],
)
def test_the_steps_that_a_scheduler_says_it_has(make, total):
    assert total_of(make(optimizer())) == total


def test_whole_epochs_of_calls_after_several_batches():
    assert whole_epochs(30, 10) == 3
    assert whole_epochs(6, 10, 5) == 3
    assert whole_epochs(9, 10, 4) == 3  # the two batches left at an epoch's end make a call too
    assert whole_epochs(4, 10, 4) == 2  # or they do not
    assert whole_epochs(25, 10) is None


# An epoch of 10 batches of 4 samples, the last of 2.
# Scheduler and total; the likely epochs, and those when it is called by the batch, by two batches, and by the epoch.
READINGS = [
    (one_cycle, 30, 3, 3, 6, 30),
    (one_cycle, 5, 5, 20 / 38, 1, 5),
    (one_cycle, 25, None, 2 + 20 / 38, 5, 25),
    (cosine, 30, 3, 3, 6, 30),
    (cosine, 4, 4, None, None, 4),
    (cosine, 25, None, None, 5, 25),
]


@pytest.mark.parametrize("reading", range(4))
@pytest.mark.parametrize(("make", "total", "likely", "batch", "two", "epoch"), READINGS)
def test_the_calls_settle_which_reading_it_is(make, total, likely, batch, two, epoch, reading):
    length = RunLength(None, make(optimizer(), total), start=4, epoch_samples=38, epoch_steps=10)
    assert length.epochs == likely and length.is_open
    if reading == 0:
        return
    calls, expected = [(1, batch), (2, two), (None, epoch)][reading - 1]
    length.settle(calls)
    assert length.epochs == pytest.approx(expected) if expected else length.epochs is None
    assert not length.is_open and length.holds == length.may_be_cycles == (expected is None)


def test_several_calls_a_batch():
    length = RunLength(None, one_cycle(optimizer(), 60), start=4, epoch_samples=40, epoch_steps=10)
    assert length.settle(0.5) and length.epochs == 3
    length = RunLength(None, one_cycle(optimizer(), 50), start=4, epoch_samples=40, epoch_steps=10)
    assert length.settle(0.5) and length.epochs == 2.5


def test_epochs_that_the_user_gives_are_not_settled():
    length = RunLength(4, one_cycle(optimizer(), 30), start=4, epoch_samples=40, epoch_steps=10)
    assert not length.is_open and not length.settle(None) and length.epochs == 4


def test_the_batch_is_held_while_the_run_may_be_longer():
    holds = {
        total: RunLength(None, one_cycle(optimizer(), total), start=4, epoch_samples=40, epoch_steps=10).holds
        for total in (5, 10, 25, 30)
    }
    assert holds == {5: False, 10: True, 25: True, 30: True}


def three_epochs() -> RunLength:
    """A run of three epochs of 10 batches, or of 30 whose scheduler is stepped once in each."""
    return RunLength(None, one_cycle(optimizer(), 30), start=4, epoch_samples=40, epoch_steps=10)


def resumed(state) -> RunLength:
    length = three_epochs()
    length.load_state_dict(state)
    return length


def test_a_length_that_the_user_has_said_is_not_settled_after_a_resume_either():
    saved = three_epochs()
    assert saved.say(3)
    again = resumed(saved.state_dict())
    assert again.say(3) and not again.say(4)
    assert not again.settle(None) and again.epochs == 3


def test_a_run_that_has_gone_on_beyond_its_length_is_not_given_it_again_by_a_resume():
    saved = three_epochs()
    saved.settle(1)
    assert saved.begin_epoch(120) and saved.epochs is None
    again = resumed(saved.state_dict())
    assert not again.settle(1) and again.epochs is None


def test_what_the_calls_have_yet_to_show_they_show_after_a_resume():
    again = resumed(three_epochs().state_dict())
    assert again.is_open and again.settle(None) and again.epochs == 30
