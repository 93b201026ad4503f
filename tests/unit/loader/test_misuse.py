import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from adaptbs.loader.misuse import PATIENCE, MisuseWarnings


def setup(*, scheduler_given=False, follows=True, batches_per_step=1):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    watched = MisuseWarnings(
        optimizer, scheduler_given=scheduler_given, follows=follows, batches_per_step=batches_per_step
    )
    return optimizer, watched


def epochs(optimizer, advice, scheduler, each):
    for _ in range(2):
        advice.begin_epoch()
        for _ in range(4):
            advice.look()
            optimizer.step()
            if each == "batch":
                scheduler.step()
        if each == "epoch":
            scheduler.step()


@pytest.mark.parametrize("make", [lambda o: CosineAnnealingLR(o, 8), lambda o: StepLR(o, 2)])
@pytest.mark.parametrize(("each", "given", "told"), [("batch", False, 1), ("batch", True, 0), ("epoch", False, 0)])
def test_of_a_scheduler_by_the_batch_that_was_not_given(caplog, make, each, given, told):
    optimizer, advice = setup(scheduler_given=given)
    epochs(optimizer, advice, make(optimizer), each)
    assert caplog.text.count("give it as scheduler=") == told


def test_who_sets_the_learning_rate_by_hand_is_told_nothing(caplog):
    optimizer, advice = setup()
    advice.begin_epoch()
    for i in range(8):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + i)
        advice.look()
    assert not caplog.text


@pytest.mark.parametrize("batches_per_step", [1, 3])
def test_of_an_optimizer_that_never_steps(caplog, batches_per_step):
    _, advice = setup(batches_per_step=batches_per_step)
    for _ in range(batches_per_step * PATIENCE - 1):
        advice.look()
    assert not caplog.text, "the first steps may be left out"
    for _ in range(100):
        advice.look()
    assert caplog.text.count("step() of the SGD that the loader was given is never called") == 1


@pytest.mark.parametrize("steps", [True, False])
def test_nothing_of_one_that_steps_or_has_nothing_to_follow(caplog, steps):
    _, advice = setup(follows=steps)
    if steps:
        advice.stepped()
    for _ in range(100):
        advice.look()
    assert not caplog.text
