"""Passes over the loader that train nothing, beside those that do, as `len(list(loader))` for a mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered

N, BATCH, EPOCHS = 512, 16, 4
GROWING = {"target": lambda noise, size, progress: BATCH if progress < 0.5 else 4 * BATCH, "decide_every": 1e-6}


class Loop:
    """A loop whose schedule moves with each batch."""

    def __init__(self, **arguments) -> None:
        self.model, self.steps, self.rates = nn.Linear(8, 1), [], []
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.scheduler = OneCycleLR(self.optimizer, 0.01, total_steps=EPOCHS * N // BATCH)
        self.loader = AdaptiveDataLoader(
            Numbered(N), BATCH, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, overhead=0,
            step_time=(1e-3, 1e-6), **GROWING | arguments,
        )  # fmt: skip

    def train(self) -> None:
        for x, y, _ in self.loader:
            self.optimizer.zero_grad()
            nn.functional.mse_loss(self.model(x), y).backward()
            self.optimizer.step()
            self.steps.append(len(x))
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.scheduler.step()


def run(look: Callable[[Loop], object], epochs: Callable[[AdaptiveDataLoader], Iterable[int]]) -> Loop:
    loop = Loop()
    for _ in epochs(loop.loader):
        loop.train()
        look(loop)
    return loop


WAYS = {"epochs(n)": lambda loader: loader.epochs(EPOCHS), "range(n)": lambda loader: range(EPOCHS)}
LOOKS = {
    "a count": lambda loop: len(list(loop.loader)),
    "an accuracy": lambda loop: [loop.model(x) for x, _, _ in loop.loader],
    "two": lambda loop: (list(loop.loader), list(loop.loader)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_at_the_data_after_each_epoch_changes_nothing(look, way, caplog):
    """It had taken a share of the run, and the schedule went to its end in half of the epochs."""
    looked, plain = run(LOOKS[look], WAYS[way]), run(lambda _: None, WAYS[way])
    assert looked.steps == plain.steps and max(plain.steps) == 4 * BATCH
    assert looked.rates == plain.rates
    assert looked.scheduler.last_epoch == plain.scheduler.last_epoch
    said = [record.getMessage() for record in caplog.records]
    assert sum("is no part of the run" in text for text in said) == 1 and len(said) <= 2  # one on that after the end


def test_it_is_not_timed_as_quick_steps():
    loop = Loop()
    timed, clock = [], loop.loader.training_run.controller._budget.clock
    step, clock.step = clock.step, lambda size: (timed.append(size), step(size))
    for _ in loop.loader.epochs(EPOCHS):
        loop.train()
        list(loop.loader)
    assert timed == loop.steps


def test_an_epoch_in_which_another_model_has_its_turn_is_one(caplog):
    loop, trained = Loop(), []
    for epoch in loop.loader.epochs(EPOCHS):
        before = len(loop.steps)
        if epoch % 2:
            for x, _, _ in loop.loader:
                len(x)  # or the other model's step
        else:
            loop.train()
            trained.append(sum(loop.steps[before:]))
    assert trained[0] == N and trained[1] <= 2 * N
    assert loop.loader.progress == 1 and "is the whole of an epoch" in caplog.text


def test_a_look_after_a_resumed_epoch_is_no_part_of_the_run():
    saved, resumed = Loop(), Loop()
    saved.train()
    resumed.loader.load_state_dict(saved.loader.state_dict())
    for loop in (saved, resumed):
        list(loop.loader)
        assert loop.loader.progress == 1 / EPOCHS
