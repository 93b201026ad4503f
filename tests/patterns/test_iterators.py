"""Loops that handle the loader's iterator themselves: each pass has each sample once, and schedules come to an end."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset, RandomSampler, Sampler

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, doubling

N, BATCH = 512, 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


class Loop:
    """A model, its optimizer, a loader over numbered samples, and the samples that were trained on."""

    def __init__(self, epochs: int | None = 3, scheduled: bool = False, dataset=None, **arguments) -> None:
        self.model = network()
        self.optimizer = SGD(self.model.parameters(), 0.01)
        self.scheduler = OneCycleLR(self.optimizer, 0.01, total_steps=3 * N // BATCH) if scheduled else None
        arguments = {"shuffle": True, "target": doubling(4), **FORCED} | arguments
        self.loader = AdaptiveDataLoader(
            dataset or Numbered(N), BATCH, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler,
            epochs=epochs, **arguments,
        )  # fmt: skip
        self.seen: list[int] = []

    def step(self, batch) -> None:
        x, y, i = batch
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(x), y).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.seen += i.tolist()

    def passes(self) -> list[list[int]]:
        return [self.seen[at : at + N] for at in range(0, len(self.seen), N)]


def restarted(loader):
    """As minGPT's trainer, and all that count steps."""
    batches = iter(loader)
    while True:
        try:
            yield next(batches)
        except StopIteration:
            batches = iter(loader)
            yield next(batches)


def endless(loader):
    while True:
        yield from loader


def endless_copies(loader):
    """A generator function that moves each batch."""
    while True:
        for batch in loader:
            yield [part.clone() for part in batch]


@pytest.mark.parametrize("way", [restarted, endless, endless_copies])
def test_an_endless_iterator_that_ends_by_the_progress(way, caplog):
    loop = Loop(epochs=None, scheduled=True)
    for batch in way(loop.loader):
        loop.step(batch)
        if loop.loader.progress >= 1:
            break
    assert loop.loader.batch_size > BATCH and loop.scheduler.last_epoch == 3 * N // BATCH
    assert [len(set(each)) for each in loop.passes()] == [N] * 3
    assert not caplog.text


@pytest.mark.parametrize("epochs", [None, 1])
def test_a_sampler_of_ten_billion_draws(epochs, caplog):
    """minGPT's and makemore's. Its indices are never made into a list, and epochs=1 would not say the run's length."""
    data = Numbered(N)
    sampler = RandomSampler(data, replacement=True, num_samples=10**10)
    loop = Loop(epochs, dataset=data, shuffle=False, sampler=sampler)
    for batch in itertools.islice(restarted(loop.loader), 200):
        loop.step(batch)
    assert len(loop.seen) >= 200 * BATCH
    assert caplog.text.count("num_samples=steps * batch_size") == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("look", ["one batch", "an accuracy"])
def test_looks_into_the_loader_within_its_own_loop(look):
    """Every eighth batch, the training data under no_grad, or a batch for a picture."""
    loop = Loop()
    for _ in loop.loader.epochs(3):
        for i, batch in enumerate(loop.loader):
            loop.step(batch)
            if i % 8 == 0 and look == "one batch":
                next(iter(loop.loader.plain_batches()))
            elif i % 8 == 0:
                with torch.no_grad():
                    assert sum(len(x) for x, _, _ in loop.loader) == N
    assert loop.loader.batch_size > BATCH
    assert all(len(set(each)) == len(each) for each in loop.passes())


def test_ctrl_c_and_the_cell_once_more(caplog):
    loop = Loop(epochs=None)

    def cell(stop: int = 0) -> list[int]:
        begun = []
        for epoch in loop.loader.epochs(4):
            begun.append(epoch)
            for i, batch in enumerate(loop.loader):
                if epoch == 1 and i + 1 == stop:
                    raise KeyboardInterrupt
                loop.step(batch)
        return begun

    with pytest.raises(KeyboardInterrupt):
        cell(2)
    assert cell() == [2, 3], "the epoch that was broken off is over"
    assert cell() == [] and "build another loader" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"), [({}, True), ({"max_batch_size": 16}, False), ({"overhead": 0}, False)]
)
def test_a_new_model_in_the_loader_of_the_one_before(arguments, said, caplog):
    """A notebook's cell run again, in mid-run and after it."""
    data, models = Numbered(512), [nn.Linear(8, 1) for _ in range(3)]
    loader = None
    for model in models:
        optimizer = SGD(model.parameters(), 0.01)
        loader = loader or AdaptiveDataLoader(
            data, 16, model=model, optimizer=optimizer, epochs=4, step_time=(4e-3, 1e-6), **arguments
        )
        for _ in range(2):
            for x, y, _ in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
    assert caplog.text.count("needs a loader") == said == len(caplog.records), "a fixed batch suits any model"


def test_epochs_that_are_passed_over_and_a_break(caplog):
    loop = Loop(epochs=None)
    for epoch in loop.loader.epochs(5):
        if epoch < 2:
            continue
        for batch in loop.loader:
            loop.step(batch)
        if epoch == 3:
            break
    assert loop.loader.progress < 1 and not caplog.text


class Easiest(Sampler):
    """A curriculum: a larger share of the data each epoch."""

    share = 0.25

    def __len__(self) -> int:
        return int(N * self.share)

    def __iter__(self):
        return iter(torch.randperm(len(self)).tolist())


def test_a_curriculum_whose_sampler_grows_between_epochs(caplog):
    sampler = Easiest()
    loop, lengths = Loop(None, shuffle=False, sampler=sampler), []
    for epoch in range(4):
        sampler.share, before = 0.25 * (epoch + 1), len(loop.seen)
        for batch in loop.loader:
            loop.step(batch)
        lengths.append(len(set(loop.seen[before:])))
    assert lengths == [128, 256, 384, 512] == [len(loop.seen) * k // 10 for k in (1, 2, 3, 4)]
    assert caplog.text.count("length of the run is not known") == 1


class Grows(Dataset):
    """Pseudo labels are added between epochs."""

    def __init__(self, most: int = N) -> None:
        self.data, self.n = Numbered(most), 128

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return self.data[i]


def test_a_dataset_that_grows_between_epochs():
    data = Grows()
    loop, lengths = Loop(None, dataset=data), []
    for _ in range(4):
        before = len(loop.seen)
        for batch in loop.loader:
            loop.step(batch)
        lengths.append(len(set(loop.seen[before:])))
        data.n += 128
    assert lengths == [128, 256, 384, 512] and len(loop.seen) == sum(lengths)


@pytest.mark.parametrize("what", ["dataset", "sampler"])
@pytest.mark.parametrize("lengths", [[512, 640, 768, 1024], [512, 384, 256, 128]], ids=["grows", "shrinks"])
@pytest.mark.parametrize("grows", [False, True])
def test_epochs_of_data_that_grow_or_shrink_are_passes_over_all_of_them(what, lengths, grows, caplog):
    """No epoch goes on with a pass over samples that are there no longer."""
    data, sampler = Grows(1024), None
    data.n = 512
    if what == "sampler":
        data, sampler = Numbered(1024), Easiest()
        sampler.share = 1.0
    how = {"target": lambda noise, size, progress: int(BATCH * (1 + 3 * grows * progress))}
    how |= {"overhead": 0.5, "step_time": (1e-3, 1e-5), "decide_every": 0.02}
    loop, seen = Loop(None, dataset=data, shuffle=sampler is None, sampler=sampler, **how), []
    for epoch in loop.loader.epochs(4):
        before, data.n = len(loop.seen), lengths[epoch]
        if sampler is not None:
            sampler.share = lengths[epoch] / N
        for batch in loop.loader:
            loop.step(batch)
        seen.append(loop.seen[before:])
    assert [len(set(each)) for each in seen] == lengths == [max(each) + 1 for each in seen]
    assert [len(each) for each in seen][1:] == lengths[1:] and (len(seen[0]) > lengths[0]) == grows
    said = f"an epoch has {lengths[1]} samples now, where 512 were planned"
    assert caplog.text.count(said) == 1 and len(caplog.records) == 1


def test_batches_without_a_step_hold_the_batch_for_the_epoch(caplog):
    """As `if not loss.isfinite(): continue` for the first three, or an exception that is caught."""
    loop = Loop()
    for i, batch in enumerate(loop.loader):
        if i < 3:
            continue
        loop.step(batch)
    assert caplog.text.count("had been fetched") == 1 and loop.loader.batch_size == BATCH


@pytest.mark.parametrize("every", [5, 2])
def test_a_batch_left_out_now_and_then_is_no_doubt(every, caplog):
    loop = Loop()
    for _ in loop.loader.epochs(3):
        for i, batch in enumerate(loop.loader):
            if i % every == 1:
                continue
            loop.step(batch)
    assert loop.loader.batch_size > BATCH and not caplog.text


def test_a_try_on_one_batch_before_the_run(caplog):
    """Does the loss go to zero on one batch? The run after it is free once an epoch has shown that it is plain."""
    loop = Loop()
    batch = next(iter(loop.loader))
    for _ in range(20):
        loop.step(batch)
    sizes = []
    for _ in range(3):
        for batch in loop.loader:
            loop.step(batch)
        sizes.append(loop.loader.batch_size)
    assert sizes[0] == BATCH < sizes[2]
    assert caplog.text.count("stepped on after the iteration") == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("epochs", [None, 3])
@pytest.mark.parametrize("look", [1, 40])
def test_a_look_into_the_loader_before_its_epochs_is_no_part_of_the_run(look, epochs, caplog):
    """As for the shape of a batch, or over all of them for the data's mean."""
    runs = []
    for looks in (0, look):
        how = {"target": lambda noise, size, progress: int(BATCH * (1 + 3 * progress)), "overhead": 0.5}
        loop = Loop(epochs, **how | {"step_time": (1e-3, 1e-5), "decide_every": 0.02})
        for _ in itertools.islice(loop.loader, looks):
            pass
        torch.manual_seed(3)
        seen = []
        for _ in loop.loader.epochs(3):
            before = len(loop.seen)
            for batch in loop.loader:
                loop.step(batch)
            seen.append(loop.seen[before:])
        assert loop.loader.progress == 1 and len(set(loop.passes()[0])) == N
        runs.append(seen)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_batch_that_is_looked_at_after_each_epoch_is_no_part_of_the_run(scheduled, caplog):
    """As for a picture, with gradients on: at a grown batch it would be a large part of an epoch."""
    positions = []
    for looks in (0, 1, 3):
        model = network()
        optimizer = SGD(model.parameters(), 0.01)
        scheduler = OneCycleLR(optimizer, 0.01, total_steps=6 * N // BATCH) if scheduled else None
        loader = AdaptiveDataLoader(
            Numbered(N), BATCH, shuffle=True, model=model, optimizer=optimizer, scheduler=scheduler, epochs=6,
            target=lambda noise, size, progress: BATCH if progress < 0.2 else 8 * BATCH, overhead=0, decide_every=1e-6,
            max_batch_size=8 * BATCH,
        )  # fmt: skip
        seen = []
        for _ in range(6):
            for x, y, _ in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                seen.append((len(x), loader.progress, optimizer.param_groups[0]["lr"]))
                if scheduler is not None:
                    scheduler.step()
            for x, y, _ in itertools.islice(loader, looks):
                nn.functional.mse_loss(model(x), y)
        positions.append(seen)
        assert scheduler is None or scheduler.last_epoch == scheduler.total_steps
    assert positions[0] == positions[1] == positions[2] and positions[0][-1][1] == 1
    assert not caplog.text
