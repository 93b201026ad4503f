"""Losses and hooks that count, collect and draw by variables of their own, in a run that is measured by halves."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, stock

STATE = {"calls": 0}
CALLS = 0


def with_a_global():
    """A warm-up of the loss by the number of its calls."""
    global CALLS
    CALLS = 0

    def loss(model, batch):
        global CALLS
        CALLS += 1
        return nn.functional.mse_loss(model(batch[0]), batch[1]) * min(1.0, CALLS / 50)

    return loss, lambda: CALLS


def with_a_global_dict():
    STATE.update(calls=0)

    def loss(model, batch):
        STATE["calls"] += 1
        return nn.functional.mse_loss(model(batch[0]), batch[1]) * min(1.0, STATE["calls"] / 50)

    return loss, lambda: dict(STATE)


def with_a_closure():
    calls, losses = 0, []

    def loss(model, batch):
        nonlocal calls
        calls += 1
        found = nn.functional.mse_loss(model(batch[0]), batch[1]) * min(1.0, calls / 50)
        losses.append(found.item())
        return found

    return loss, lambda: losses


def with_generators():
    drawn, first, second, third = [], torch.Generator().manual_seed(1), np.random.default_rng(2), random.Random(3)

    def loss(model, batch):
        x = batch[0] + 0.1 * torch.randn(batch[0].shape, generator=first) + 0.1 * second.normal() + third.random()
        drawn.append(x.sum().item())
        return nn.functional.mse_loss(model(x), batch[1])

    return loss, lambda: drawn


def with_a_meter_in_a_lambda():
    class Meter:
        def __init__(self) -> None:
            self.total, self.seen = 0.0, 0

        def update(self, loss) -> torch.Tensor:
            self.total, self.seen = self.total + loss.item(), self.seen + 1
            return loss * min(1.0, self.seen / 50)

    meter = Meter()
    return (
        lambda model, batch: meter.update(nn.functional.mse_loss(model(batch[0]), batch[1])),
        lambda: (meter.total, meter.seen),
    )


def trained(made, ours: bool, hook: bool):
    loss, read = made()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    optimizer, features = SGD(model.parameters(), 0.01), []
    if hook:
        model[1].register_forward_hook(lambda module, inputs, output: features.append(output.detach().sum().item()))
    loader = stock(Numbered(256), 16)
    if ours:
        loader = AdaptiveDataLoader(
            Numbered(256), 16, shuffle=True, model=model, optimizer=optimizer, epochs=4, overhead=0.5,
            batch_loss=loss, max_batch_size=16, step_time=(1e-4, 1e-5),
        )  # fmt: skip
    for _ in range(4):
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    if ours:
        assert "halves" in loader.history.to_frame()["source"].tolist()
    return model[0].weight.detach(), read(), features


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize(
    "made", [with_a_global, with_a_global_dict, with_a_closure, with_generators, with_a_meter_in_a_lambda]
)
def test_the_run_is_the_stock_loaders_to_the_bit(made, hook):
    weights, found, features = trained(made, ours=True, hook=hook)
    expected, as_stock, as_stocks_features = trained(made, ours=False, hook=hook)
    assert torch.equal(weights, expected)
    assert found == as_stock and features == as_stocks_features
