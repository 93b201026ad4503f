"""A schedule goes to its place in the plan, whatever the loop's calls of `scheduler.step()` count."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from tests.integration.training import FORCED, Numbered, adaptive, doubling, network, stock

N, EPOCHS, BATCH = 1024, 3, 16
STEPS = N // BATCH
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter", "ignore:Detected call of")


def cosine(optimizer, total: int):
    return schedulers.CosineAnnealingLR(optimizer, total)


def by_lambda(optimizer, total: int):
    """Linear to 0, as Hugging Face's get_linear_schedule_with_warmup makes it."""

    def rate(step: int, *, num_training_steps: int) -> float:
        return max(0.0, 1 - step / num_training_steps)

    return schedulers.LambdaLR(optimizer, functools.partial(rate, num_training_steps=total))


def sequential(optimizer, total: int):
    warm_up, rest = schedulers.LinearLR(optimizer, 0.1, total_iters=9), cosine(optimizer, total - 9)
    return schedulers.SequentialLR(optimizer, [warm_up, rest], milestones=[9])


def chained(optimizer, total: int):
    return schedulers.ChainedScheduler([schedulers.LinearLR(optimizer, 0.1, total_iters=9), cosine(optimizer, total)])


def one_cycle(optimizer, total: int):
    return schedulers.OneCycleLR(optimizer, 0.1, total_steps=total)


class Warmup(schedulers.LRScheduler):
    """A wrapper that hands over to another scheduler after its warm-up, as pytorch-gradual-warmup-lr does."""

    def __init__(self, optimizer, warm_up: int, after) -> None:
        self.warm_up, self.after = warm_up, after
        super().__init__(optimizer)

    def get_lr(self):
        share = min((self.last_epoch + 1) / self.warm_up, 1)
        return [base * share for base in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch >= self.warm_up:
            self.after.step()
            self.last_epoch += 1
        else:
            super().step(epoch)


MAKERS = [cosine, by_lambda, sequential, chained, one_cycle]


def every_batch(i: int, seen: int, scheduler) -> None:
    scheduler.step()


def twice_a_batch(i: int, seen: int, scheduler) -> None:
    scheduler.step(), scheduler.step()


def every_4th_batch(i: int, seen: int, scheduler) -> None:
    if (i + 1) % 4 == 0:
        scheduler.step()


def every_64_samples(i: int, seen: int, scheduler) -> None:
    """As a loop that counts samples, and may be due several times after a large batch."""
    for _ in range(seen // 64 - scheduler.calls):
        scheduler.step()
        scheduler.calls += 1


LOOPS = {every_batch: STEPS, twice_a_batch: 2 * STEPS, every_4th_batch: STEPS // 4, every_64_samples: STEPS // 4}


def ended(make, call, total: int, *, grow: bool, **arguments):
    """Learning rate and number of the scheduler's step at the end of a run, and its largest batch."""
    torch.manual_seed(0)
    data, model = Numbered(N), network()
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = make(optimizer, total)
    scheduler.calls = 0
    loader = stock(data, BATCH)
    if grow:
        loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), **FORCED, **arguments)
    seen = largest = i = 0
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.step()
            seen, largest = seen + len(batch[2]), max(largest, len(batch[2]))
            call(i, seen, scheduler)
            i += 1
    inner = scheduler._schedulers[0] if isinstance(scheduler, schedulers.ChainedScheduler) else scheduler
    return optimizer.param_groups[0]["lr"], inner.last_epoch, largest


@pytest.mark.parametrize("epochs", [EPOCHS, None], ids=["epochs given", "epochs not given"])
@pytest.mark.parametrize("call", LOOPS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_it_ends_where_it_would_have_ended_however_it_is_called(make, call, epochs):
    total = EPOCHS * LOOPS[call]
    lr, step, largest = ended(make, call, total, grow=True, epochs=epochs)
    fixed_lr, fixed_step, _ = ended(make, call, total, grow=False)
    assert largest >= 64
    if call is every_4th_batch:  # the last batches of the run may have no call
        assert 0 <= fixed_step - step <= 4 * largest / 64
        return
    assert step == fixed_step
    assert lr == pytest.approx(fixed_lr, rel=1e-6, abs=1e-9)


def test_a_wrapper_that_is_a_scheduler_itself_goes_by_samples():
    def make(optimizer, total):
        return Warmup(optimizer, 10, cosine(optimizer, total - 10))

    lr, step, largest = ended(make, every_batch, EPOCHS * STEPS, grow=True)
    fixed_lr, fixed_step, _ = ended(make, every_batch, EPOCHS * STEPS, grow=False)
    assert largest >= 64 and step == fixed_step
    assert lr == pytest.approx(fixed_lr, abs=1e-6)


def test_the_call_at_the_last_batch_of_each_epoch_is_one_step():
    """Inside of the loop, by `if i == len(loader) - 1`."""
    model, data = network(), Numbered(N)
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = schedulers.StepLR(optimizer, 1, 0.5)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=EPOCHS, **FORCED)
    for _ in range(EPOCHS):
        for i, _ in enumerate(loader):
            optimizer.step()
            if i == len(loader) - 1:
                scheduler.step()
    assert scheduler.last_epoch == EPOCHS and loader.batch_size >= 64


def test_a_scaler_that_leaves_the_first_steps_out_does_not_change_the_interval():
    model, data = network(), Numbered(N)
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = by_lambda(optimizer, EPOCHS * STEPS)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=EPOCHS, **FORCED)
    skipped = 0
    for _ in range(EPOCHS):
        for _ in loader:
            optimizer.step()
            if skipped < 2:
                skipped += 1
            else:
                scheduler.step()
    assert EPOCHS * STEPS - 2 <= scheduler.last_epoch <= EPOCHS * STEPS


# Explicit epochs.


def within_the_epoch(epoch: int, i: int, updates: int) -> float:
    return epoch + i / STEPS


def after_the_batch(epoch: int, i: int, updates: int) -> float:
    return epoch + (i + 1) / STEPS


def updates_of_the_run(epoch: int, i: int, updates: int) -> float:
    return updates / STEPS


def rates(number, *, grow: bool):
    """The learning rate after each batch by the samples seen, of warm restarts told where they are."""
    torch.manual_seed(0)
    data, model = Numbered(N), network()
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2)
    loader = stock(data, BATCH)
    if grow:
        loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=3, **FORCED)
    seen, updates, found = 0, 0, {}
    for epoch in range(3):
        for i, batch in enumerate(loader):
            optimizer.step()
            seen += len(batch[2])
            scheduler.step(number(epoch, i, updates))
            updates += 1
            found[seen] = optimizer.param_groups[0]["lr"]
    return found


@pytest.mark.parametrize("number", [within_the_epoch, after_the_batch, updates_of_the_run], ids=lambda n: n.__name__)
def test_an_explicit_epoch_is_moved_to_where_the_fixed_run_would_be(number):
    fixed, ours = rates(number, grow=False), rates(number, grow=True)
    assert len(ours) < len(fixed) / 2
    for seen, rate in ours.items():
        assert rate == pytest.approx(fixed[seen], abs=1e-9)


def test_an_explicit_epoch_by_the_progress_of_the_loader_is_left_alone():
    model, data = network(), Numbered(N)
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=3)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=3, **FORCED)
    for _ in range(3):
        for _ in loader:
            optimizer.step()
            scheduler.step(2.99 * loader.progress)
            assert scheduler.T_cur == pytest.approx(2.99 * loader.progress)


def test_a_whole_epoch_told_once_an_epoch_is_left_alone():
    model, data = network(), Numbered(N)
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = schedulers.StepLR(optimizer, 1, 0.5)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=3, **FORCED)
    for epoch in range(3):
        for _ in loader:
            optimizer.step()
        scheduler.step(epoch + 1)
    assert scheduler.last_epoch == 3


class OfUpdatesBase(ABC):
    """As timm's base class: told the epoch once an epoch, and the updates at each."""

    def __init__(self, optimizer, updates: int) -> None:
        self.optimizer, self.updates, self.at, self.epoch = optimizer, updates, 0, 0

    @abstractmethod
    def step(self, epoch: int, metric: float | None = None) -> None:
        self.epoch = epoch

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self.at = num_updates
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * min(num_updates / self.updates, 1)))


class OfUpdates(OfUpdatesBase):
    """A scheduler as timm makes them."""

    def step(self, epoch: int, metric: float | None = None) -> None:
        super().step(epoch, metric)


def test_a_scheduler_as_timm_makes_them_goes_by_samples(caplog):
    model, data = network(), Numbered(N)
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = OfUpdates(optimizer, 3 * STEPS)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=3, **FORCED)
    updates = seen = 0
    for epoch in range(3):
        for batch in loader:
            optimizer.step()
            updates, seen = updates + 1, seen + len(batch[2])
            scheduler.step_update(num_updates=updates, metric=0.0)
            assert scheduler.at == seen // BATCH
        scheduler.step(epoch + 1, 0.0)
        assert scheduler.epoch == epoch + 1
    assert updates < 3 * STEPS / 2 and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
    assert not caplog.text


@pytest.mark.parametrize("every", [1, 2])
def test_updates_that_begin_each_epoch_at_its_number_times_the_loaders_length(every, caplog):
    """As timm's train.py counts them, by the length of now. They fell back at each epoch, and so did the rate."""
    model, data, epochs = network(), Numbered(N), 4
    optimizer = SGD(model.parameters(), 0.1)
    per_epoch = -(-STEPS // every)
    scheduler = OfUpdates(optimizer, epochs * per_epoch)
    loader = adaptive(
        data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(16), epochs=epochs,
        accumulation_steps=every, **FORCED,
    )  # fmt: skip
    for epoch in range(epochs):
        updates, seen, before = epoch * -(-len(loader) // every), 0, scheduler.at
        for i, batch in enumerate(loader):
            seen += len(batch[2])
            if (i + 1) % every and i + 1 < len(loader):
                continue
            optimizer.step()
            updates += 1
            scheduler.step_update(num_updates=updates)
            assert scheduler.at >= before and abs(scheduler.at - epoch * per_epoch - seen / BATCH / every) <= 2 * every
            before = scheduler.at
        scheduler.step(epoch + 1)
    assert loader.batch_size > BATCH and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=5e-4)
    assert not caplog.text


class Holds:
    """A wrapper that is no scheduler itself."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


class Noam:
    """Sets the rate by a count of its own."""

    def __init__(self, optimizer) -> None:
        self.optimizer, self.count = optimizer, 0

    def step(self) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("make", "advice"), [(lambda o: Holds(cosine(o, 9)), "scheduler.inner"), (Noam, "loader.progress")]
)
def test_what_cannot_be_driven_is_refused_and_says_what_to_write(make, advice):
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match=advice):
        adaptive(Numbered(64), model, optimizer, scheduler=make(optimizer))


def test_the_scheduler_inside_of_a_wrapper_is_driven_through_it():
    def make(optimizer, total):
        return cosine(optimizer, total)

    def through_a_wrapper(i, seen, scheduler):
        Holds(scheduler).step()

    lr, *_ = ended(make, through_a_wrapper, EPOCHS * STEPS, grow=True)
    assert lr == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("called", [every_batch, every_4th_batch], ids=lambda call: call.__name__)
def test_a_plateau_scheduler_is_told_its_metric_and_nothing_else(called):
    """Inside of the loop too."""
    data, model = Numbered(N), network()
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=10**6)
    loader = adaptive(data, model, optimizer, BATCH, scheduler=scheduler, target=doubling(8), epochs=1, **FORCED)
    for _ in loader:
        optimizer.step()
        scheduler.step(1.0)
    assert scheduler.last_epoch < STEPS and loader.batch_size >= 64
