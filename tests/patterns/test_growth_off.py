"""With growth off, by either way, a run from any batch is the stock loader's to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import default_collate

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, stock

N, EPOCHS = 512, 12


def by_hand(optimizer):
    for i in range(10**6):
        yield
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.999**i


def by_scheduler(optimizer):
    scheduler = ExponentialLR(optimizer, 0.999)
    while True:
        yield
        scheduler.step()


@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": 16}])
@pytest.mark.parametrize("rate", [by_hand, by_scheduler])
def test_nothing_is_in_doubt_that_only_another_batch_would_change(rate, off, caplog):
    """Neither the run's length nor who sets the rate matters to a batch that stays; no sample is tried twice."""
    data, fetched = Numbered(64), []

    def collate(samples):
        fetched.append([int(i) for *_, i in samples])
        x, y, _ = default_collate(samples)
        return [x[None], y]

    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(data, 16, shuffle=True, collate_fn=collate, model=model, optimizer=optimizer, **off)
    steps = rate(optimizer)
    for _ in range(8):
        for x, y in loader:
            next(steps)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[0]), y).backward()
            optimizer.step()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert [len(each) for each in fetched] == [16] * 32


@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": 16}])
@pytest.mark.parametrize("beside", ["an averaged copy", "a second optimizer", "no step"])
def test_nothing_is_said_of_parameters_that_would_not_follow_a_batch_that_stays(beside, off, caplog):
    model = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 1)})
    if beside == "an averaged copy":
        model["average"] = torch.optim.swa_utils.AveragedModel(model["second"])
    trains = [model["first"], *([model["second"]] if beside == "an averaged copy" else [])]
    optimizer = SGD([p for layer in trains for p in layer.parameters()], 0.01)
    other = SGD(model["second"].parameters(), 0.01)
    loader = AdaptiveDataLoader(
        Numbered(320), 16, shuffle=True, model=model, optimizer=optimizer, epochs=3, step_time=(1e-4, 1e-5), **off
    )
    for _ in range(3):
        for x, y, _ in loader:
            optimizer.zero_grad()
            other.zero_grad()
            nn.functional.mse_loss(model["second"](model["first"](x)), y).backward()
            if beside != "no step":
                optimizer.step()
            if beside == "an averaged copy":
                model["average"].update_parameters(model["second"])
            else:
                other.step()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert loader.batch_size == 16


class Memory(nn.Module):
    """A loss over this batch and the embeddings of those before, as a cross-batch memory's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(64, 4))
        self.place = 0

    def forward(self, found, target):
        n = len(found)
        self.kept[torch.arange(self.place, self.place + n) % 64] = found.detach()
        self.place = (self.place + n) % 64
        return (found - target).square().mean() + 0.1 * (found @ self.kept.T).square().mean()


@pytest.mark.parametrize("source", ["auto", "halves"])
def test_a_loss_that_remembers_earlier_batches(source):
    """It is called on halves, and to see whether it couples samples, and remembers none of that."""
    ends, places = [], []
    for ours in (False, True):
        torch.manual_seed(0)
        model, memory = nn.Linear(8, 4), Memory()
        optimizer = SGD(model.parameters(), 0.01)
        loader = stock(Numbered(N), 16)
        if ours:
            loader = AdaptiveDataLoader(
                Numbered(N), 16, shuffle=True, model=model, optimizer=optimizer, epochs=3, overhead=0.5,
                batch_loss=lambda model, batch, memory=memory: memory(model(batch[0]), batch[1]),
                max_batch_size=16, source=source,
            )  # fmt: skip
        for _ in range(3):
            for x, y, _ in loader:
                optimizer.zero_grad()
                memory(model(x), y).backward()
                optimizer.step()
        ends.append(model.weight.detach())
        places.append(memory.place)
    assert torch.equal(*ends) and places[0] == places[1]


class Trainer:
    """A trainer of one's own, whose loss is weighted by the number of its calls, as by a warm-up."""

    def __init__(self) -> None:
        self.calls, self.losses = 0, []

    def loss(self, model, batch):
        x, y, _ = batch
        self.calls += 1
        loss = nn.functional.mse_loss(model(x), y) * min(1.0, self.calls / 50)
        self.losses.append(loss.item())
        return loss


def test_a_trainer_that_counts_the_calls_of_its_loss():
    ends, collected = [], []
    for ours in (False, True):
        torch.manual_seed(0)
        model, trainer = nn.Linear(8, 1), Trainer()
        optimizer = SGD(model.parameters(), 0.01)
        loader = stock(Numbered(N), 16)
        if ours:
            loader = AdaptiveDataLoader(
                Numbered(N), 16, shuffle=True, model=model, optimizer=optimizer, epochs=3, overhead=0.5,
                batch_loss=trainer.loss, max_batch_size=16, source="halves",
            )  # fmt: skip
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                trainer.loss(model, batch).backward()
                optimizer.step()
        ends.append(model.weight.detach())
        collected.append(trainer.losses)
    assert torch.equal(*ends) and collected[0] == collected[1]
    assert loader.noise_scale.caveat is None, "no coupled samples are seen in the weights of its calls"


def trained(make, optimizer_class) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = optimizer_class(model.parameters(), 0.01)
    loader = make(model, optimizer)
    for _ in range(EPOCHS):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("off", [lambda batch: {"overhead": 0}, lambda batch: {"max_batch_size": batch}])
@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
@pytest.mark.parametrize("batch", [8, 128, N])
def test_from_any_batch(batch, optimizer_class, off):
    """Of a large first batch the noise would allow a smaller one early in the run."""

    def ours(model, optimizer):
        return AdaptiveDataLoader(
            Numbered(N), batch, shuffle=True, model=model, optimizer=optimizer, epochs=EPOCHS, step_time=(1e-4, 1e-5),
            **off(batch),
        )  # fmt: skip

    assert torch.equal(trained(ours, optimizer_class), trained(lambda *_: stock(Numbered(N), batch), optimizer_class))
