"""Loops that count an epoch's batches by themselves, as ignite's Engine does."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR, StepLR

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered

N, BATCH, EPOCHS = 512, 16, 3


class Engine:
    """Runs as ignite's: begins the loader anew at its end, and ends an epoch after `len(loader)` batches."""

    def __init__(self, process) -> None:
        self.process, self.handlers, self.stopped = process, {}, False

    def on(self, event: str, handler) -> Engine:
        self.handlers.setdefault(event, []).append(handler)
        return self

    def fire(self, event: str) -> None:
        for handler in self.handlers.get(event, ()):
            handler()

    def terminate(self) -> None:
        self.stopped = True

    def run(self, loader, max_epochs: int) -> int:
        epoch_length, batches, iterations = len(loader), iter(loader), 0
        for _ in range(max_epochs):
            count = 0
            while count < epoch_length and not self.stopped:
                try:
                    batch = next(batches)
                except StopIteration:
                    self.fire("the loader has stopped")
                    batches = iter(loader)
                    continue
                self.process(batch)
                count, iterations = count + 1, iterations + 1
                self.fire("iteration completed")
            self.fire("epoch completed")
        return iterations


class Run:
    def __init__(self, schedule, growth: int = 3, **arguments) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(8, 1)
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.scheduler = schedule(self.optimizer)
        self.loader = AdaptiveDataLoader(
            Numbered(N), BATCH, shuffle=True, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler,
            target=lambda noise, size, progress: int(BATCH * (1 + growth * min(progress, 1))),
            overhead=0.5, step_time=(1e-3, 1e-5), decide_every=0.02, **arguments,
        )  # fmt: skip
        self.samples = 0
        self.engine = Engine(self.step)

    def step(self, batch) -> None:
        x, y, _ = batch
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(x), y).backward()
        self.optimizer.step()
        self.samples += len(x)


def halved(optimizer):
    return StepLR(optimizer, 1, 0.5)


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, EPOCHS)


@pytest.mark.parametrize(
    ("schedule", "end", "arguments"),
    [(halved, 0.01 / 8, {"epochs": EPOCHS}), (cosine, 0, {})],
    ids=["StepLR", "cosine"],
)
def test_a_scheduler_by_such_epochs_makes_one_step_for_each_and_the_batch_is_held(schedule, end, arguments, caplog):
    run = Run(schedule, **arguments)
    run.engine.on("epoch completed", run.scheduler.step)
    assert run.engine.run(run.loader, EPOCHS) == EPOCHS * N // BATCH
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(end)
    assert run.loader.history.records[-1]["reason"] == "the loop counts the batches of an epoch"
    assert caplog.text.count("counts 32 batches to an epoch by itself") == 1 and len(caplog.records) == 1


def test_with_growth_off_it_is_no_doubt(caplog):
    run = Run(halved, growth=0, epochs=EPOCHS)
    run.engine.on("epoch completed", run.scheduler.step)
    run.engine.run(run.loader, EPOCHS)
    assert run.samples == EPOCHS * N and run.scheduler.last_epoch == EPOCHS and not caplog.records


@pytest.mark.parametrize("schedule", [halved, cosine])
def test_as_the_page_says_to_write_it(schedule, caplog):
    run = Run(schedule, epochs=EPOCHS)
    run.engine.on("the loader has stopped", run.scheduler.step)
    run.engine.on("iteration completed", lambda: run.engine.terminate() if run.loader.progress >= 1 else None)
    assert run.engine.run(run.loader, EPOCHS) < 0.7 * EPOCHS * N // BATCH
    assert run.samples == EPOCHS * N and run.scheduler.last_epoch == EPOCHS - 1  # the last pass has no next
    assert not caplog.records


def test_a_run_that_goes_on_after_its_epochs_is_told_so(caplog):
    run = Run(lambda optimizer: ExponentialLR(optimizer, 0.99), epochs=EPOCHS)
    run.engine.on("iteration completed", run.scheduler.step)
    run.engine.run(run.loader, EPOCHS)
    assert run.samples > 1.5 * EPOCHS * N and run.loader.progress == 1
    assert caplog.text.count("goes on after the 3 epochs that it was said to have") == 1 and len(caplog.records) == 1


def test_past_the_end_of_its_length_and_of_its_schedule_it_is_told_so_once(caplog):
    """As in loops by iterations, whose schedule has as many steps."""
    run = Run(lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=EPOCHS * N // BATCH))
    run.engine.on("iteration completed", run.scheduler.step)
    run.engine.run(run.loader, EPOCHS)
    assert run.samples > 1.5 * EPOCHS * N and run.scheduler.last_epoch == EPOCHS * N // BATCH
    assert caplog.text.count("let it end when loader.progress is 1") == 1 == len(caplog.records)


def by_next(loader, train) -> None:
    """As of examples that draw from several loaders at once."""
    batches = iter(loader)
    for _ in range(len(loader)):
        train(next(batches))


def before_it(loader, train) -> None:
    n, i = len(loader), 0
    batches = iter(loader)
    while i < n:
        train(batches.__next__())
        i += 1


def caught(loader, train) -> None:
    batches = iter(loader)
    for _ in range(len(loader)):
        try:
            batch = next(batches)
        except StopIteration:
            break
        train(batch)


def with_a_default(loader, train) -> None:
    batches, i = iter(loader), 0
    while (batch := next(batches, None)) is not None:
        train(batch)
        i += 1
        f"{i} of {len(loader)}"


def looked_at_first(loader, train) -> None:
    next(iter(loader))
    for i, batch in enumerate(loader):
        train(batch)
        f"{i} of {len(loader)}"


def not_counted(loader, train) -> None:
    """Of a fixed number of batches, as with an endless sampler."""
    batches = iter(loader)
    for _ in range(5):
        train(next(batches))


def run_drawn(loop, epochs: int = 3, **arguments):
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    target = {"target": lambda noise, size, progress: BATCH if progress < 0.1 else 4 * BATCH, "overhead": 0}
    arguments = {"decide_every": 1e-6, "max_batch_size": 4 * BATCH, "epochs": 3} | target | arguments
    loader = AdaptiveDataLoader(Numbered(N), BATCH, shuffle=True, model=model, optimizer=optimizer, **arguments)

    def train(batch) -> None:
        x, y, _ = batch
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    for _ in range(epochs):
        loop(loader, train)
    return loader


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell what is around a call")
@pytest.mark.parametrize("loop", [by_next, before_it])
def test_as_many_batches_as_the_loader_has_that_are_drawn_by_next(loop, caplog):
    """Larger batches are fewer, and the loop would end in StopIteration."""
    loader = run_drawn(loop)
    assert loader.batch_size == BATCH
    assert loader.history.records[-1]["reason"] == "the loop counts the batches of an epoch"
    assert caplog.text.count("Write `for batch in loader`") == len(caplog.records) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell what is around a call")
def test_they_are_free_again_once_a_for_draws_them():
    loader = run_drawn(by_next, 1)
    for _ in loader:
        pass
    assert loader.training_run.controller.holds.reason is None


@pytest.mark.parametrize("loop", [caught, with_a_default, looked_at_first, not_counted])
def test_other_loops_that_draw_by_next_grow(loop, caplog):
    loader = run_drawn(loop, 12 if loop is not_counted else 3)
    assert loader.batch_size == 4 * BATCH and "next()" not in caplog.text


def test_drawn_by_next_with_growth_off_is_no_doubt(caplog):
    run_drawn(by_next, target="goodput")
    assert not caplog.text
