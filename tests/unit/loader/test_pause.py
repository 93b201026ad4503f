"""Other work between two batches, as a validation: it ends the step, and is no part of the next."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from adaptbs.loader import AdaptedLoader, LoopFacts
from adaptbs.run import NoLookAhead
from adaptbs.timing.clock import NoClock
from tests.integration.training import Numbered, loss_of

SAMPLES, BATCH = 60, 8


class Recording(NoClock):
    """Notes what a clock is told."""

    def __init__(self) -> None:
        self.events = []

    def start(self):
        self.events.append("start")

    def step(self, batch_size):
        self.events.append(batch_size)


def made(model):
    optimizer = SGD(model.parameters(), 0.01)
    facts, stock = LoopFacts(look_ahead=NoLookAhead), DataLoader(Numbered(SAMPLES), BATCH)
    return optimizer, AdaptedLoader(facts, stock, model=model, optimizer=optimizer, epochs=1, overhead=0)


def train(model, optimizer, batch) -> None:
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def model():
    return torch.nn.Linear(8, 1)


@pytest.mark.parametrize("pauses", [(), (2,), (0, 1, 3), range(8)])
def test_a_pause_ends_the_step_once_and_the_next_begins_after_it(model, pauses):
    optimizer, loader = made(model)
    loader.training_run.use_clock(clock := Recording())
    expected = ["start"]
    for i, batch in enumerate(loader):
        train(model, optimizer, batch)
        if i in pauses:
            loader.pause()
            loader.pause()  # as where a validation follows a checkpoint
            assert clock.events == [*expected, len(batch[0])]
            loader.go_on()
            expected += [len(batch[0]), "start"]
        else:
            expected.append(len(batch[0]))
    assert clock.events == expected


def test_a_state_saved_in_a_pause_ends_no_step_twice(model):
    optimizer, loader = made(model)
    for i, batch in enumerate(loader):
        train(model, optimizer, batch)
        if i == 2:
            loader.pause()
            state = loader.state_dict()
            break
    _, rest = made(model)
    rest.load_state_dict(state)
    # Loading begins a run, and a clock is given to one that has begun.
    rest.training_run.use_clock(clock := Recording())
    sizes = [len(batch[0]) for batch in rest]
    assert clock.events == ["start", *sizes]
    assert sum(sizes) == SAMPLES - 3 * BATCH


def test_a_state_of_a_lengthened_epoch_has_more_samples_left(model):
    optimizer, loader = made(model)
    assert AdaptedLoader.lengthened(state := loader.state_dict(), 8) is state  # no epoch is under way
    batches = iter(loader)
    train(model, optimizer, next(batches))
    state = loader.state_dict()
    left = state["source"]["rest"]["left"]
    assert AdaptedLoader.lengthened(state, 5)["source"]["rest"]["left"] == left + 5
    assert state["source"]["rest"]["left"] == left
