"""Variables outside of objects that functions of the user's change are as before after a pass."""

from __future__ import annotations

import random
from collections import deque
from functools import partial, wraps

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptbs.model import BatchLoss, Calling
from adaptbs.model.preserve import preserved
from adaptbs.model.values import LARGEST

BATCH = (torch.ones(3, 2), torch.zeros(3, 1))
CALLS, HISTORY, BY_NAME, CENTRE = 0, [], {"calls": 0}, torch.zeros(1)


class Meter:
    def __init__(self) -> None:
        self.total, self.values = 0.0, []

    def update(self, value: float) -> None:
        self.total += value
        self.values.append(value)


METER = Meter()


def count() -> int:
    """Called by the losses below."""
    global CALLS, NEW
    CALLS += 1
    NEW = CALLS
    BY_NAME["calls"] += 1
    return CALLS


def of_globals(model, batch):
    loss = F.mse_loss(model(batch[0]), batch[1]) * count()
    HISTORY.append(loss.item())
    METER.update(loss.item())
    CENTRE.mul_(0.9).add_(1)
    return loss


def seen_globally() -> list[object]:
    return [CALLS, "NEW" in globals(), list(HISTORY), dict(BY_NAME), CENTRE.item(), METER.total, list(METER.values)]


def closure(depth: int = 0):
    """A loss that counts in variables that it closes over, and a function that reads them."""
    calls, recent, longer, own = 0, deque([0], maxlen=3), [0] * LARGEST, Meter()
    generators = torch.Generator().manual_seed(1), np.random.default_rng(2), random.Random(3), np.random.RandomState(4)
    first, second, third, fourth = generators

    def loss(model, batch):
        nonlocal calls
        calls += 1
        recent.append(calls)
        longer.append(calls)
        own.update(calls)
        noise = torch.rand(1, generator=first) + second.random() + third.random() + fourth.rand()
        return F.mse_loss(model(batch[0]), batch[1]) + noise.sum()

    @wraps(loss)
    def wrapped(model, batch):
        return loss(model, batch)

    def read() -> list[object]:
        states = [first.get_state().tolist(), second.bit_generator.state["state"], third.getstate()]
        return [calls, list(recent), len(longer), own.total, list(own.values), *states, fourth.get_state()[2]]

    return wrapped if depth else loss, read


class Called:
    """An object that is called in place of a function."""

    def __init__(self, loss) -> None:
        self.loss = loss

    def __call__(self, model, batch):
        HISTORY.append(0)
        return self.loss(model, batch)


def of_ours(loss, read):
    """A function of adaptbs's around the user's, as that of a trainer's loss."""

    def ours(model, batch):
        return loss(model, batch)

    ours.__module__ = BatchLoss.__module__
    return Calling(ours, None, loss), read


CASES = {
    "globals": lambda: (of_globals, seen_globally),
    "a lambda": lambda: (lambda model, batch: of_globals(model, batch), seen_globally),
    "a partial": lambda: (partial(of_globals), seen_globally),
    "an object": lambda: (Called(F.mse_loss and of_globals), seen_globally),
    "a closure": closure,
    "a decorated closure": lambda: closure(1),
    "one of ours around globals": lambda: of_ours(of_globals, seen_globally),
    "one of ours around an object": lambda: of_ours(Called(of_globals), seen_globally),
    "one of ours around a closure": lambda: of_ours(*closure()),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_leaves_its_variables_as_they_were(case, passes, nested):
    function, read = CASES[case]()
    loss, model = BatchLoss(batch_loss=function), nn.Linear(2, 1)
    for _ in range(passes):
        before = read()
        with loss.preserving(model):
            loss(model, BATCH)
            if nested:
                inside = read()
                with loss.preserving(model):
                    loss(model, BATCH)
                assert read() == inside
            assert read() != before
        assert read() == before
        loss(model, BATCH)  # the loop's own, which counts
        assert read() != before


def test_a_variable_that_gets_its_first_value_has_none_again():
    def loss(model, batch):
        nonlocal first
        first = model(batch[0]).mean()
        return first

    called = BatchLoss(batch_loss=loss)
    with called.preserving(nn.Linear(2, 1)):
        called(nn.Linear(2, 1), BATCH)
    first = None
    assert first is None


def test_an_error_in_the_loss_leaves_them_too():
    def fails(model, batch):
        count()
        raise RuntimeError("no loss")

    loss, before = BatchLoss(batch_loss=fails), seen_globally()
    with pytest.raises(RuntimeError), loss.preserving(nn.Linear(2, 1)):
        loss(nn.Linear(2, 1), BATCH)
    assert seen_globally() == before


class Draws(nn.Module):
    """Draws its noise from a generator of its own, and calls a function that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.generator = nn.Linear(2, 1), torch.Generator().manual_seed(0)

    def forward(self, x):
        count()
        return self.linear(x + torch.rand(x.shape, generator=self.generator))


def test_the_forward_and_hooks_of_a_model():
    model, features = nn.Sequential(Draws(), nn.Identity()), []
    model[1].register_forward_hook(lambda module, inputs, output: features.append(output))
    before, state = seen_globally(), model[0].generator.get_state()
    for _ in range(2):
        with preserved(model):
            model(BATCH[0])
            assert len(features) == 1
        assert not features and seen_globally() == before
        assert torch.equal(model[0].generator.get_state(), state)


def test_functions_of_installed_packages_are_left_alone():
    """Their caches are theirs."""
    cache = torch.nn.functional.__dict__.setdefault("_a_cache_of_a_test", [])

    def mse_loss(prediction, target):
        torch.nn.functional._a_cache_of_a_test.append(1)
        return F.mse_loss(prediction, target)

    loss = BatchLoss(loss_func=mse_loss)
    with loss.preserving(nn.Linear(2, 1)):
        loss(nn.Linear(2, 1), BATCH)
    del torch.nn.functional._a_cache_of_a_test
    assert cache == [1]


def test_generators_are_those_that_loss_and_model_may_draw_from():
    assert len(BatchLoss(batch_loss=closure()[0]).generators(Draws())) == 5
    assert not BatchLoss(batch_loss=of_globals).generators(nn.Linear(2, 1))
