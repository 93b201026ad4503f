"""Epochs that the loop breaks off: with growth off, by either way, the run is the stock loader's to the bit."""

from __future__ import annotations

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.training import ShortEpochCallback
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import make_learner
from tests.integration.training import Numbered, stock

BATCH, EPOCHS = 16, 4
OFF = [{"overhead": 0}, {"max_batch_size": BATCH}, {"max_batch_size": BATCH, "budget": "epochs"}]


def trained(make, epochs) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 0.01)
    loader = make(model, optimizer)
    for epoch in epochs(loader):
        for i, (x, y, _) in enumerate(loader):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            if i + 1 == len(loader) // (2 + epoch):
                break
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("epochs", [lambda loader: range(EPOCHS), lambda loader: loader.epochs(EPOCHS)])
def test_a_loop_that_breaks_epochs_off(epochs, off):
    def ours(model, optimizer):
        return AdaptiveDataLoader(
            Numbered(512), BATCH, shuffle=True, model=model, optimizer=optimizer, epochs=EPOCHS, **off
        )

    fixed = trained(lambda *_: stock(Numbered(512), BATCH), lambda _: range(EPOCHS))
    assert torch.equal(trained(ours, epochs), fixed)


class Rates(Callback):
    order = 70

    def before_fit(self):
        self.seen = []

    def before_batch(self):
        if self.training:
            self.seen.append((self.epoch, self.iter, self.n_iter, self.pct_train, self.opt.hypers[-1]["lr"]))


@pytest.mark.parametrize("off", OFF)
def test_a_learners_short_epochs(off):
    runs = []
    for callbacks in ([], [AdaptiveBatchSize(**off)]):
        torch.manual_seed(0)
        learn, rates = make_learner(BATCH, 512), Rates()
        learn.fit_one_cycle(EPOCHS, 0.01, cbs=[*callbacks, ShortEpochCallback(pct=0.5), rates])
        runs.append((rates.seen, torch.cat([p.detach().flatten() for p in learn.model.parameters()])))
    (fixed, weights), (seen, own) = runs
    assert seen == fixed and torch.equal(own, weights)


@pytest.mark.parametrize("after", [False, True])
def test_a_state_saved_before_the_break_goes_on_in_the_epoch_and_one_after_it_does_not(after):
    """As docs/checkpoints.md says of a loop that stops where its time is up."""

    def made() -> AdaptiveDataLoader:
        model = nn.Linear(8, 1)
        return AdaptiveDataLoader(
            Numbered(64), 8, model=model, optimizer=SGD(model.parameters(), 0.0), epochs=2, overhead=0
        )

    loader, resumed, state = made(), made(), None
    for k, _ in enumerate(loader, 1):
        if k == 3:
            state = loader.state_dict()
            break
    resumed.load_state_dict(loader.state_dict() if after else state)
    assert sum(len(x) for x, _, _ in resumed) == (64 if after else 64 - 3 * 8)
