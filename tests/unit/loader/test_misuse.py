import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from adaptbs.loader.misuse import PATIENCE, STEP, MisuseWarnings
from adaptbs.run import RATE, Holds


def setup(*, rate_follows=False, follows=True, batches_per_step=1):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    holds = Holds()
    holds.say()  # from here on warnings are logged at once
    watched = MisuseWarnings(
        optimizer, rate_follows=rate_follows, follows=follows, batches_per_step=batches_per_step, holds=holds,
        parameters=tuple,
    )  # fmt: skip
    return optimizer, watched


def epochs(optimizer, advice, scheduler, each):
    for _ in range(2):
        advice.begin_epoch()
        for _ in range(4):
            advice.look(True)
            optimizer.step()
            if each == "batch":
                scheduler.step()
        if each == "epoch":
            scheduler.step()


@pytest.mark.parametrize("make", [lambda o: CosineAnnealingLR(o, 8), lambda o: StepLR(o, 2)])
@pytest.mark.parametrize(("each", "given", "told"), [("batch", False, 1), ("batch", True, 0), ("epoch", False, 0)])
def test_of_a_scheduler_by_the_batch_that_was_not_given(caplog, make, each, given, told):
    optimizer, advice = setup(rate_follows=given)
    epochs(optimizer, advice, make(optimizer), each)
    assert caplog.text.count("give it as scheduler=") == told


@pytest.mark.parametrize("by_progress", [True, False])
def test_who_sets_the_learning_rate_by_hand_and_not_by_the_progress_is_told_so_once(caplog, by_progress):
    optimizer, advice = setup()
    advice.begin_epoch()
    for i in range(8):
        if by_progress:
            advice.progress_was_read()
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        advice.look(True)
    assert caplog.text.count("Compute it from loader.progress") == (not by_progress)
    assert advice._holds.reason == (None if by_progress else RATE)


def test_a_rate_that_stays_for_a_while_sets_the_batch_free(caplog):
    """As after a warm-up by hand."""
    optimizer, advice = setup()
    advice.begin_epoch()
    for i in range(8 + PATIENCE):
        if i < 8:
            optimizer.param_groups[0]["lr"] = 0.1 * (1 + i)
        advice.look(False)
        assert (advice._holds.reason == RATE) == (2 <= i < 7 + PATIENCE)
    assert len(caplog.records) == 1


def test_a_rate_that_is_set_now_and_then_is_no_doubt(caplog):
    optimizer, advice = setup()
    advice.begin_epoch()
    for i in range(8 * PATIENCE):
        if i % (PATIENCE + 1) == 0:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        advice.look(True)
        advice.stepped()
    assert not caplog.text and advice._holds.reason is None


@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_of_an_optimizer_that_never_steps(caplog, batches_per_step):
    _, advice = setup(batches_per_step=batches_per_step)
    for _ in range(batches_per_step * PATIENCE - 1):
        advice.look(True)
    assert not caplog.text, "the first steps may be left out"
    for _ in range(100):
        advice.look(True)
    assert caplog.text.count("step() of the SGD that the loader was given is never called") == 1
    assert advice._holds.reason == STEP
    advice.stepped()
    assert advice._holds.reason is None


@pytest.mark.parametrize("steps", [True, False])
def test_nothing_of_one_that_steps_or_has_nothing_to_follow(caplog, steps):
    _, advice = setup(follows=steps)
    if steps:
        advice.stepped()
    for _ in range(100):
        advice.look(True)
    assert not caplog.text
