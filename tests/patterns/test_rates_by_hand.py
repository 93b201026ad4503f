"""Learning rates that the loop sets itself: by the progress they are right; by a count of batches the batch is held."""

from __future__ import annotations

import math

import pytest
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from adaptbs import one_cycle
from tests.integration.training import FORCED, Numbered, adaptive, doubling, network

N, BATCH, EPOCHS = 1024, 16, 2
STEPS = EPOCHS * N // BATCH
RATE = "learning rate does not follow the samples"


class Noam:
    """A scheduler of its own kind, as the annotated transformer has one: it counts its calls."""

    def __init__(self, optimizer) -> None:
        self.optimizer, self.count = optimizer, 0

    def step(self, loader) -> None:
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * min(self.count**-0.5, self.count * 20**-1.5)


class ByNumber(Noam):
    """adjust_learning_rate(optimizer, iteration), as in many scripts."""

    def step(self, loader) -> None:
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * self.count / STEPS))


class NotGiven(Noam):
    """A torch scheduler that the loader was not given."""

    def __init__(self, optimizer) -> None:
        super().__init__(optimizer)
        self.scheduler = schedulers.CosineAnnealingLR(optimizer, STEPS)

    def step(self, loader) -> None:
        self.scheduler.step()


class ByProgress(Noam):
    def step(self, loader) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = one_cycle(loader.progress, 0.1)


class OnceAnEpoch(Noam):
    """Between two epochs, by hand."""

    def step(self, loader) -> None:
        pass

    def between(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5


class WarmUp(Noam):
    """The first steps by their number, as YOLO's scripts do."""

    def step(self, loader) -> None:
        self.count += 1
        if self.count <= 20:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 * self.count / 20


def run(kind):
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    rate = kind(optimizer)
    loader = adaptive(Numbered(N), model, optimizer, BATCH, target=doubling(6), epochs=EPOCHS, **FORCED)
    for _ in range(EPOCHS):
        for _ in loader:
            optimizer.step()
            rate.step(loader)
        if hasattr(rate, "between"):
            rate.between()
    return loader, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", [Noam, ByNumber, NotGiven])
def test_a_rate_by_the_number_of_the_batch_holds_it(kind, caplog):
    """So the schedule ends where it would have ended."""
    loader, lr = run(kind)
    assert loader.batch_size == BATCH and len(caplog.records) == 1
    assert loader.history.records[-1]["reason"] == loader.history.records[-1]["doubt"] == RATE
    assert ("scheduler=" in caplog.text) and ("batch is held" in caplog.text)
    if kind is not Noam:
        assert lr == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [ByProgress, OnceAnEpoch])
def test_a_rate_that_does_not_count_batches_is_no_doubt(kind, caplog):
    loader, _ = run(kind)
    assert loader.batch_size >= 64 and not caplog.text


def test_after_a_warm_up_by_hand_the_batch_grows(caplog):
    loader, lr = run(WarmUp)
    reasons = [record["reason"] for record in loader.history.records]
    assert RATE in reasons and reasons[-1] != RATE
    assert loader.batch_size >= 64 and lr == pytest.approx(0.1) and len(caplog.records) == 1
