"""Several AdaptiveDataLoaders with one optimizer: it follows the one whose batches are trained on."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, doubling

BATCH = 16
NO_STEP = "is never called"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loader_of(model, optimizer, n=512, **arguments) -> AdaptiveDataLoader:
    arguments = {"shuffle": True, "epochs": 4, "target": doubling(4), "lr_scaling": "linear", **FORCED} | arguments
    return AdaptiveDataLoader(Numbered(n), BATCH, model=model, optimizer=optimizer, **arguments)


class Run:
    """A model, its optimizer and the rates of its steps: by each its batch, as a loop's loader gave it."""

    def __init__(self) -> None:
        self.model = network()
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.used: list[float] = []

    def train(self, loader, between=None) -> None:
        for i, batch in enumerate(loader):
            if between is not None and i % 8 == 1:
                between()
            self.train_on(loader, batch)

    def train_on(self, loader, batch) -> None:
        x, y, _ = batch
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(x), y).backward()
        lr = self.optimizer.param_groups[0]["lr"]
        watch = self.optimizer.register_step_pre_hook(lambda *_: self.used.append(self.rate()))
        self.optimizer.step()
        watch.remove()
        # The last batch of an epoch may be a short one, which keeps the step of the size that it was cut at.
        assert self.used[-1] == pytest.approx(lr * loader.lr_factor) and loader.lr_factor >= len(x) / BATCH

    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def validate(self, loader) -> None:
        for x, y, _ in loader:
            nn.functional.mse_loss(self.model(x), y).item()


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("gradients", [torch.no_grad, nullcontext])
@pytest.mark.parametrize("within", [False, True])
def test_a_validation_loader_of_the_same_kind_that_is_built_last(within, gradients, scheduled, caplog):
    run = Run()
    scheduler = CosineAnnealingLR(run.optimizer, T_max=4) if scheduled else None
    train = loader_of(run.model, run.optimizer, scheduler=scheduler)
    valid = loader_of(run.model, run.optimizer, 128, scheduler=scheduler, max_batch_size=BATCH)

    def validate() -> None:
        with gradients():
            run.validate(valid)

    for epoch in range(4):
        run.train(train, between=validate if within else None)
        validate()
        if scheduler is not None:
            scheduler.step()
            assert scheduler.last_epoch == epoch + 1
    assert train.batch_size == FORCED["max_batch_size"] and NO_STEP not in caplog.text


def test_a_validation_loader_whose_passes_begin_with_gradients_is_told_of_stock_loaders(caplog):
    """As of the loop over phases of torch's transfer learning tutorial, with `set_grad_enabled` inside."""
    run = Run()
    loaders = {phase: AdaptiveDataLoader(Numbered(512), BATCH, model=run.model, optimizer=run.optimizer, epochs=2)
               for phase in ("train", "val")}  # fmt: skip
    for _ in range(2):
        run.train(loaders["train"])
        for x, y, _ in loaders["val"]:
            with torch.set_grad_enabled(False):
                nn.functional.mse_loss(run.model(x), y).item()
    assert loaders["val"].batch_size == BATCH
    assert caplog.text.count("To validate, use a stock DataLoader") == len(caplog.records) == 1


def test_two_loaders_that_are_trained_on_in_turn(caplog):
    run = Run()
    first, second = loader_of(run.model, run.optimizer), loader_of(run.model, run.optimizer, target=doubling(9))
    for _ in range(2):
        run.train(first)
        run.train(second)
    assert first.batch_size > second.batch_size > BATCH and not caplog.text


def test_a_loop_over_one_within_a_loop_over_the_other(caplog):
    run = Run()
    outer, inner = loader_of(run.model, run.optimizer), loader_of(run.model, run.optimizer, 64, epochs=32)
    for _ in range(2):
        run.train(outer, between=lambda: run.train(inner))
    assert outer.batch_size > BATCH and not caplog.text


@pytest.mark.parametrize("scheduled", [False, True])
def test_two_that_take_turns_batch_by_batch(scheduled, caplog):
    """As tasks or languages do in a loop that trains on one batch of each after the other."""
    run = Run()
    scheduler = CosineAnnealingLR(run.optimizer, T_max=4 * 2 * 512 // BATCH) if scheduled else None
    settings = {"scheduler": scheduler, "epochs": 4, "overhead": 0.3}
    first = loader_of(run.model, run.optimizer, **settings)
    second = loader_of(run.model, run.optimizer, target=doubling(9), **settings)
    for _ in range(4):
        turns = {loader: iter(loader) for loader in (first, second)}
        while turns:
            for loader, batches in list(turns.items()):
                if (batch := next(batches, None)) is None:
                    del turns[loader]
                    continue
                run.train_on(loader, batch)
                if scheduler is not None:
                    scheduler.step()
    assert first.batch_size > BATCH and second.batch_size > BATCH
    measured = [sum(r["event"] == "measurement" for r in loader.history) for loader in (first, second)]
    assert min(measured) > 10, measured
    assert scheduler is None or scheduler.last_epoch == scheduler.T_max
    assert not caplog.text


def test_two_that_are_drawn_from_together_hold_the_first(caplog):
    run = Run()
    first, second = loader_of(run.model, run.optimizer), loader_of(run.model, run.optimizer)
    for _ in range(2):
        for (x, y, _), (u, v, _) in zip(first, second, strict=False):
            run.optimizer.zero_grad()
            (nn.functional.mse_loss(run.model(x), y) + nn.functional.mse_loss(run.model(u), v)).backward()
            run.optimizer.step()
    assert first.history.records[-1]["reason"] == "optimizer is not stepped"
    assert caplog.text.count("let the others be stock DataLoaders") == 1


def test_one_that_is_closed_or_gone_is_followed_no_more():
    run = Run()
    first, second = loader_of(run.model, run.optimizer), loader_of(run.model, run.optimizer)
    batches = iter(first)
    x, y, _ = next(batches)
    first.close()
    nn.functional.mse_loss(run.model(x), y).backward()
    assert run.optimizer.__dict__["_adaptbs_step_hook"] is second._session.step_hook
    del batches, second
    run.train(third := loader_of(run.model, run.optimizer))
    assert third.batch_size > BATCH
