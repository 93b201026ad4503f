"""Runs in which little or nothing can be known: the stock loader's run to the bit, and one warning that says what to
give."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, Streamed

N, BATCH = 300, 16


class Box:
    """A batch of the user's own kind, of which nothing can be known."""

    def __init__(self, items) -> None:
        self.x, self.y = (torch.stack(part) for part in list(zip(*items, strict=True))[:2])


class Odd(nn.Module):
    """A parameter beside its layers, BatchNorm and Dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.norm, self.drop = nn.Parameter(torch.randn(8, 1)), nn.BatchNorm1d(8), nn.Dropout(0.2)

    def forward(self, x):
        return self.drop(self.norm(x)) @ self.weight


class Novel(Optimizer):
    """An optimizer of the user's own, whose hyperparameters mean nobody knows what."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "novelty": 0.5})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign() * group["novelty"]


def of_a_box(model, box):
    return nn.functional.mse_loss(model(box.x), box.y)


def weights(model) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


#: A part of what cannot be known, and of what the warning says to give.
LENGTH, MEASURED, CUT = "Give epochs=", "cannot be measured", "give split="
ROWS, OPTIMIZER, RATE = "let collate_fn= make a row", "transfer=('lr',)", "give it as scheduler="


@pytest.mark.parametrize(
    ("arguments", "how", "said"),
    [
        ({}, {"loss"}, {LENGTH, MEASURED, CUT}),
        ({}, {"loss", "stream"}, {LENGTH, MEASURED, CUT, ROWS}),
        ({"overhead": 0}, {"stream"}, set()),  # the batch cannot change, so nothing else has to be known
        ({"overhead": 0}, {"scheduler beside"}, set()),
        ({"max_batch_size": BATCH}, {"loss", "scheduler beside"}, {MEASURED, CUT}),
        ({"epochs": 2}, {"loss"}, {MEASURED, CUT}),
        ({"epochs": 2}, {"loss", "stream"}, {MEASURED, CUT, ROWS}),
        ({}, {"loss", "novel"}, {LENGTH, MEASURED, CUT, OPTIMIZER}),
        ({}, {"loss", "novel", "stream", "scheduler"}, {LENGTH, MEASURED, CUT, OPTIMIZER, ROWS}),
        ({}, {"loss", "scheduler beside"}, {LENGTH, MEASURED, CUT, RATE}),
        ({"accumulation_steps": 2}, {"loss", "stream"}, {LENGTH, MEASURED, CUT, ROWS}),
        ({"num_workers": 2}, {"loss", "stream"}, {LENGTH, MEASURED, CUT, ROWS}),
        ({"drop_last": True}, {"loss"}, {LENGTH, MEASURED, CUT}),
        ({"epochs": 2}, {"loss", "plain batches"}, set()),  # all can be known
    ],
)  # fmt: skip
def test_one_warning_says_all_that_is_to_be_given(arguments, how, said, caplog):
    data, ends = Numbered(N), []
    data = Streamed(data) if "stream" in how else data
    plain = "plain batches" in how
    order = {"drop_last": arguments.get("drop_last", False), "num_workers": arguments.get("num_workers", 0)}
    order |= ({} if plain else {"collate_fn": Box}) | ({} if "stream" in how else {"shuffle": True})
    every = arguments.get("accumulation_steps", 1)

    def loss_of(model, batch):
        x, y = batch[:2] if plain else (batch.x, batch.y)
        return nn.functional.mse_loss(model(x), y)

    for adaptive in (False, True):
        model = Odd()
        optimizer = (Novel if "novel" in how else Adam)(model.parameters(), 0.01)
        scheduler = StepLR(optimizer, 5, 0.9) if {"scheduler", "scheduler beside"} & how else None
        loader = DataLoader(data, BATCH, **order)
        if adaptive:
            given = arguments | ({"batch_loss": loss_of} if "loss" in how else {}) | order
            given |= {"scheduler": scheduler} if "scheduler" in how else {}
            given |= {"max_batch_size": BATCH} if plain else {}
            loader = AdaptiveDataLoader(data, BATCH, model=model, optimizer=optimizer, **given)
        torch.manual_seed(1)
        for _ in range(2):
            for i, batch in enumerate(loader):
                (loss_of(model, batch) / every).backward()
                if (i + 1) % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    if scheduler is not None:
                        scheduler.step()
            optimizer.zero_grad()
        ends.append(weights(model))
    assert torch.equal(*ends)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == (1 if said else 0)
    every_part = {LENGTH, MEASURED, CUT, ROWS, OPTIMIZER, RATE}
    assert {part for part in every_part if part in "".join(warned)} == said
    if said:
        lines = warned[0].count("\n- ")
        assert lines == (len(said - {CUT}) if len(said - {CUT}) > 1 else 0)  # how to cut is said with the measuring


def test_a_later_doubt_is_said_by_itself(caplog):
    """After the first steps, where the loop goes on by an optimizer that the loader has not been given."""
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(Numbered(1600), BATCH, model=model, optimizer=optimizer, shuffle=True)
    for _ in range(2):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        optimizer = SGD(model.parameters(), 0.01)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("the length of the run is not known") and "is not called any more" in second


def test_the_warning_comes_while_the_loop_still_holds_its_iterator(caplog):
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(Numbered(1600), BATCH, model=model, optimizer=optimizer, shuffle=True)
    batches = iter(loader)
    for x, y, _ in itertools.islice(batches, 10):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    assert caplog.text.count("length of the run is not known") == 1
    batches.close()
    assert caplog.text.count("length of the run is not known") == 1


@pytest.mark.parametrize("how", ["an error at the first batch", "a loader that is never iterated"])
def test_no_warning_is_lost(how, caplog):
    model = Odd()
    optimizer = Novel(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        Numbered(512), BATCH, model=model, optimizer=optimizer, batch_loss=lambda model, batch: model(batch[0]).mean()
    )
    if how == "an error at the first batch":
        with pytest.raises(RuntimeError, match="16 elements"):
            for x, _, _ in loader:
                model(x.mT)
        assert LENGTH in caplog.text
    del loader
    assert caplog.text.count(OPTIMIZER) == 1 and len(caplog.records) == 1


def test_such_a_model_without_its_loss_is_refused():
    model = Odd()
    with pytest.raises(ValueError, match="or overhead=0, which measures nothing"):
        AdaptiveDataLoader(Numbered(64), BATCH, model=model, optimizer=SGD(model.parameters(), 0.01), collate_fn=Box)
