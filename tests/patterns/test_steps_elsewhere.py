"""Loops that step something other than the optimizer that the loader was given: SAM's two steps, an optimizer for each
parameter within the backward pass, weights that are changed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader

SAMPLES, BATCH, EPOCHS = 512, 16, 8


class Sharp(SGD):
    """SAM, as far as the loader sees it: the loop calls two methods of its own, and never `step()`."""

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["climbed"] = 0.05 * p.grad
            p += self.state[p]["climbed"]
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p -= self.state[p]["climbed"] + self.param_groups[0]["lr"] * p.grad
        self.zero_grad()


def by_sam(model):
    optimizer = Sharp(model.parameters(), 0.05)

    def step(loss_of):
        loss_of().backward()
        optimizer.first_step()
        loss_of().backward()
        optimizer.second_step()

    return optimizer, step


def within_backward(model):
    each = {p: SGD([p], 0.05) for p in model.parameters()}

    def take(parameter):
        each[parameter].step()
        each[parameter].zero_grad()

    for parameter in each:
        parameter.register_post_accumulate_grad_hook(take)
    return SGD(model.parameters(), 0.05), lambda loss_of: loss_of().backward()


def by_hand(model):
    def step(loss_of):
        loss_of().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
                p.grad = None

    return SGD(model.parameters(), 0.05), step


LOOPS = pytest.mark.parametrize("loop", [by_sam, within_backward, by_hand])


def trained(loop, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(SAMPLES, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), BATCH, shuffle=True)
    optimizer, step = loop(model)
    if settings:
        loader = AdaptiveDataLoader.from_loader(
            loader, model=model, optimizer=optimizer, epochs=EPOCHS, step_time=(1e-3, 1e-6), **settings
        )
    watched = 0
    for _ in range(EPOCHS):
        for xb, yb in loader:
            watched += bool(settings) and loader.training_run.measuring.watches
            step(lambda xb=xb, yb=yb: nn.functional.mse_loss(model(xb), yb))
    return [p.detach().clone() for p in model.parameters()], loader, watched


@LOOPS
@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": BATCH}])
def test_with_growth_off_nothing_is_said(loop, off, caplog):
    stock, *_ = trained(loop)
    found, loader, _ = trained(loop, **off)
    assert all(map(torch.equal, stock, found)) and not caplog.records
    assert "not stepped" not in str(loader.summary())


@LOOPS
def test_it_is_held_and_its_steps_are_not_watched_for_ever(loop, caplog):
    _, loader, watched = trained(loop, overhead=0.3)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "is never called" in warning and loader.batch_size == BATCH
    assert watched < EPOCHS * SAMPLES / BATCH / 4, "each watched step is a slow one"
