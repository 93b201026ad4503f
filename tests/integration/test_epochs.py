"""Epochs that are shares of a run's progress, in plain loops: schedulers, samplers, streams, breaks, saved states."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from adaptbs import AdaptiveDataLoader

N, START, GROWN, EPOCHS = 320, 8, 32, 4


class Numbers(TensorDataset):
    """Noisy examples that say which they are: (x, y, index)."""

    def __init__(self, n: int = N) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, 4, generator=generator)
        y = x.sum(1, keepdim=True) + 3 * torch.randn(n, 1, generator=generator)
        super().__init__(x, y, torch.arange(n))


class Stream(IterableDataset):
    """The same, read from the beginning each time. It takes note of how many have been read."""

    def __init__(self, n: int = N, says: int | None = None) -> None:
        self.data, self.says, self.read, self.numbers = Numbers(n), says or n, 0, []

    def __len__(self) -> int:
        return self.says

    def set_epoch(self, number: int) -> None:
        self.numbers.append(number)

    def __iter__(self):
        for i in range(len(self.data)):
            self.read += 1
            yield self.data[i]


class Shuffled(Sampler):
    """Draws its order by the number that `set_epoch` is told, as torch's DistributedSampler does."""

    def __init__(self, n: int) -> None:
        self.n, self.number, self.told = n, 0, []

    def __len__(self) -> int:
        return self.n

    def set_epoch(self, number: int) -> None:
        self.number = number
        self.told.append(number)

    def __iter__(self):
        return iter(torch.randperm(self.n, generator=torch.Generator().manual_seed(self.number)).tolist())


def made(data=None, *, scheduler=None, **arguments):
    """A loader whose batch goes to `GROWN` at once, so that its epochs take more than a pass."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = SGD(model.parameters(), 0.01)
    schedule = scheduler(optimizer) if scheduler is not None else None
    data = Numbers() if data is None else data
    settings = {"step_time": (1.0, 0.0), "overhead": 0.5, "target": lambda *_: GROWN, "max_batch_size": GROWN}
    if "sampler" not in arguments and not isinstance(data, IterableDataset):
        settings["shuffle"] = True
    loader = AdaptiveDataLoader(
        data, START, model=model, optimizer=optimizer, scheduler=schedule, **settings | arguments
    )  # fmt: skip
    return loader, model, optimizer, schedule


def epoch_of(loader, model, optimizer, *_, stop: int | None = None, step=lambda: None) -> list[int]:
    """Indices of an epoch, batch by batch."""
    seen = []
    for i, (x, y, index) in enumerate(loader):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        step()
        seen += index.tolist()
        if i + 1 == stop:
            break
    return seen


def passes_of(seen: list[int], n: int = N) -> list[list[int]]:
    return [seen[begin : begin + n] for begin in range(0, len(seen), n)]


def each_once(seen: list[int], n: int = N) -> bool:
    *whole, last = passes_of(seen, n)
    return all(sorted(one) == list(range(n)) for one in whole) and len(set(last)) == len(last)


def test_a_scheduler_stepped_once_an_epoch_ends_where_the_fixed_run_would():
    loader, *parts = made(scheduler=lambda optimizer: StepLR(optimizer, 2, 0.5), epochs=EPOCHS)
    rates = []
    for _ in loader.epochs(EPOCHS):
        epoch_of(loader, *parts)
        parts[-1].step()
        rates.append(parts[1].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.005, 0.005, 0.0025])
    assert loader.training_run.controller.progress_tracker.samples > EPOCHS * N


def test_a_scheduler_stepped_every_batch_is_at_an_epochs_share_when_the_epoch_ends():
    steps = EPOCHS * N // START
    loader, *parts = made(scheduler=lambda optimizer: OneCycleLR(optimizer, 0.01, total_steps=steps))
    places = []
    for _ in loader.epochs(EPOCHS):
        epoch_of(loader, *parts, step=parts[-1].step)
        places.append(parts[-1].last_epoch)
    assert places[-1] == steps
    for epoch, place in enumerate(places, 1):
        assert 0 <= place - epoch * N // START <= GROWN // START


def test_a_scheduler_that_follows_a_metric_is_asked_once_an_epoch():
    loader, *parts = made(scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=1), epochs=6)
    for _ in loader.epochs(6):
        epoch_of(loader, *parts)
        parts[-1].step(1.0)
    assert parts[-1].last_epoch == 6
    assert parts[1].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_an_explicit_epoch_at_the_end_of_each_counts_epochs():
    loader, *parts = made(scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5), epochs=EPOCHS)
    for epoch in loader.epochs(EPOCHS):
        epoch_of(loader, *parts)
        with pytest.warns(UserWarning):
            parts[-1].step(epoch + 1)
    assert parts[1].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**EPOCHS)


def test_a_sampler_is_called_with_the_number_of_the_pass():
    sampler = Shuffled(N)
    loader, *parts = made(sampler=sampler, epochs=EPOCHS)
    seen = []
    for epoch in loader.epochs(EPOCHS):
        sampler.set_epoch(epoch)  # as the loop had it before
        seen += epoch_of(loader, *parts)
    passes = passes_of(seen)
    assert len(passes) > EPOCHS
    for number, one in enumerate(passes):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(number)).tolist()
        assert one == order[: len(one)], "a pass that begins inside an epoch has an order of its own"


def test_a_plain_range_has_passes_and_leaves_set_epoch_to_the_loop():
    sampler = Shuffled(N)
    loader, *parts = made(sampler=sampler, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        assert sorted(epoch_of(loader, *parts)) == list(range(N))
    assert sampler.told == list(range(EPOCHS))


def test_the_first_pass_on_top_is_said_once_and_each_epoch_says_its_samples(caplog):
    caplog.set_level(logging.INFO, "adaptbs")
    loader, *parts = made(epochs=EPOCHS)
    took = [len(epoch_of(loader, *parts)) for _ in loader.epochs(EPOCHS)]
    said = [record.getMessage() for record in caplog.records]
    assert sum("more than one pass" in line for line in said) == 1
    for epoch, samples in enumerate(took):
        assert any(line.startswith(f"epoch {epoch} took {samples} samples") for line in said)


def test_nothing_of_that_is_said_where_passes_are_epochs(caplog):
    caplog.set_level(logging.INFO, "adaptbs")
    loader, *parts = made(epochs=2, budget="epochs")
    assert [len(epoch_of(loader, *parts)) for _ in loader.epochs(2)] == [N, N]
    assert not any("pass" in record.getMessage() for record in caplog.records)


def test_a_loop_that_breaks_at_the_last_batch_has_broken_nothing_off():
    loader, *parts = made(epochs=EPOCHS)
    seen = []
    for _ in loader.epochs(EPOCHS):
        for i, (x, y, index) in enumerate(loader):
            parts[1].zero_grad()
            nn.functional.mse_loss(parts[0](x), y).backward()
            parts[1].step()
            seen += index.tolist()
            if i + 1 == len(loader):
                break
    assert each_once(seen) and len(seen) > EPOCHS * N
    assert loader.progress == 1


def test_an_epoch_that_is_broken_off_ends_its_pass_and_the_next_makes_up_for_it():
    loader, *parts = made(epochs=3, target=lambda *_: START)
    first, second, third = (
        epoch_of(loader, *parts, stop=10 if epoch == 0 else None) for epoch in loader.epochs(3)
    )
    assert len(first) == 10 * START
    assert len(second) == 2 * N - 10 * START and each_once(second), "in new passes"
    assert len(third) == N and each_once(second + third)


def test_a_second_batch_that_the_loop_takes_from_another_iteration_each_time():
    loader, model, optimizer, _ = made(epochs=EPOCHS)
    seen, epochs = [], 0
    for _ in loader.epochs(EPOCHS):
        epochs += 1
        for x, y, index in loader:
            seen += index.tolist()
            next(iter(loader))  # as a partner to mix with: it is no part of the pass
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    assert epochs == EPOCHS and loader.progress == 1
    assert loader.training_run.controller.progress_tracker.samples == len(seen)


@pytest.mark.parametrize("how", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
@pytest.mark.parametrize("look", ["accuracy", "plain"])
def test_a_look_at_the_data_between_two_epochs_leaves_the_pass_as_it_is(how, look):
    loader, *parts = made(epochs=EPOCHS, **how)
    seen = []
    for _ in loader.epochs(EPOCHS):
        seen += epoch_of(loader, *parts)
        if look == "plain":
            assert sorted(i for *_, index in loader.plain_batches() for i in index.tolist()) == list(range(N))
            continue
        with torch.no_grad():
            assert sorted(i for *_, index in loader for i in index.tolist()) == list(range(N))
            assert len(loader) == -(-N // loader.batch_size)
    assert each_once(seen) and len(seen) > EPOCHS * N


def test_workers_see_what_is_changed_in_the_dataset_between_two_epochs():
    class Staged(Numbers):
        stage = 0

        def __getitem__(self, i):
            x, y, index = super().__getitem__(i)
            return x, y, index + 1000 * self.stage

    data = Staged()
    loader, *parts = made(data, epochs=3, num_workers=1)
    seen = []
    for data.stage in loader.epochs(3):
        epoch = epoch_of(loader, *parts)
        assert {index // 1000 for index in epoch} == {data.stage}
        seen += [index % 1000 for index in epoch]
    assert each_once(seen)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loop_that_looks_a_batch_ahead_ends_each_epoch_with_the_batch_that_crosses(workers):
    def ahead(loader):
        before = None
        for batch in loader:
            if before is not None:
                yield before
            before = batch
        yield before

    loader, model, optimizer, _ = made(epochs=EPOCHS, num_workers=workers)
    progress, seen, epochs = loader.training_run.controller.progress_tracker, [], 0
    for _ in loader.epochs(EPOCHS):
        epochs += 1
        for x, y, index in ahead(loader):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            seen += index.tolist()
        assert progress.samples == len(seen), "no batch is fetched that does not count"
    assert epochs == EPOCHS and each_once(seen)
    assert loader.progress == 1


def test_a_step_of_several_batches_goes_on_across_the_end_of_a_pass():
    steps = 3
    loader, model, optimizer, _ = made(epochs=EPOCHS, accumulation_steps=steps, target=lambda *_: steps * GROWN)
    tracker, seen, ends = loader.training_run.tracker, [], []
    for _ in loader.epochs(EPOCHS):
        for i, (x, y, index) in enumerate(loader):
            (nn.functional.mse_loss(model(x), y) / steps).backward()
            ends.append((i + 1) % steps == 0)
            assert tracker.current.ends_step == ends[-1], "a loop that counts its batches is right"
            if ends[-1]:
                optimizer.step()
                optimizer.zero_grad()
            seen += index.tolist()
    assert each_once(seen) and len(seen) > EPOCHS * N


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_in_the_middle_and_is_read_once_a_pass(workers):
    data = Stream()
    loader, *parts = made(data, epochs=EPOCHS, num_workers=workers)
    seen, epochs = [], 0
    for _ in loader.epochs(EPOCHS):
        epochs += 1
        seen += epoch_of(loader, *parts)
        assert len(loader) > 0
    assert epochs == EPOCHS and len(seen) > EPOCHS * N
    assert all(one == list(range(len(one))) for one in passes_of(seen))
    assert data.numbers == list(range(len(passes_of(seen))))
    if not workers:
        assert data.read == len(seen), "nothing is read twice"


def test_a_stream_whose_workers_are_taken_away_is_read_again_up_to_where_it_was():
    loader, *parts = made(Stream(), epochs=EPOCHS, num_workers=1, persistent_workers=True)
    seen = []
    for _ in loader.epochs(EPOCHS):
        seen += epoch_of(loader, *parts)
        with torch.no_grad():
            assert sum(len(index) for *_, index in loader) == N
    assert all(one == list(range(len(one))) for one in passes_of(seen)) and len(seen) > EPOCHS * N


@pytest.mark.parametrize("says", [100, 250, 500])
def test_a_stream_of_another_length_than_it_says_loses_nothing(says):
    loader, *parts = made(Stream(says=says), epochs=EPOCHS)
    seen = [i for _ in loader.epochs(EPOCHS) for i in epoch_of(loader, *parts)]
    assert all(one == list(range(len(one))) for one in passes_of(seen)) and len(seen) >= EPOCHS * says


@pytest.mark.parametrize("stop", [9, 15, 30, 44])
@pytest.mark.parametrize("stream", [False, True])
def test_saved_in_the_middle_and_gone_on_with(stop, stream):
    def begin():
        return made(Stream() if stream else None, epochs=EPOCHS)

    def batches(loader, model, optimizer, _):
        for epoch in loader.epochs(EPOCHS):
            for x, y, index in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
                yield epoch, index.tolist()

    torch.manual_seed(3)
    parts = begin()
    torch.manual_seed(4)
    unbroken = list(batches(*parts))
    parts = begin()
    torch.manual_seed(4)
    underway = batches(*parts)
    seen = list(itertools.islice(underway, stop))
    states = copy.deepcopy([part.state_dict() for part in parts[:3]])
    random = torch.get_rng_state()
    resumed = begin()
    for part, state in zip(resumed[:3], states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random)
    assert seen + list(batches(*resumed)) == unbroken
    assert list(dict(unbroken)) == list(range(EPOCHS))


def test_what_is_left_of_a_pass_keeps_no_worker_alive_after_the_run():
    loader, *parts = made(Stream(), epochs=2, num_workers=1)
    for _ in loader.epochs(2):
        epoch_of(loader, *parts)
        break
    loader.close()
    with pytest.raises(RuntimeError, match="close"):
        iter(loader)


def test_a_loader_taken_over_has_epochs_too():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader.from_loader(
        DataLoader(Numbers(), START, shuffle=True), model=model, optimizer=optimizer, epochs=2,
        step_time=(1.0, 0.0), overhead=0.5, target=lambda *_: GROWN, max_batch_size=GROWN,
    )  # fmt: skip
    epochs = [epoch_of(loader, model, optimizer) for _ in loader.epochs(2)]
    assert len(epochs) == 2 and each_once(list(itertools.chain(*epochs)))


def test_the_schedules_place_and_the_summary_are_of_the_whole_run():
    loader, *parts = made(epochs=EPOCHS)
    for epoch in loader.epochs(EPOCHS):
        epoch_of(loader, *parts)
        assert loader.progress == pytest.approx((epoch + 1) / EPOCHS, abs=GROWN / (EPOCHS * N))
    assert loader.summary().samples == loader.training_run.controller.progress_tracker.samples
    assert loader.trade_off().to_dict()


@pytest.mark.parametrize("stream", [False, True])
def test_an_iteration_that_is_begun_and_dropped_loses_nothing_of_the_pass(stream):
    """It is never asked for a batch."""
    seen = {}
    for dropped in (False, True):
        loader, *parts = made(Stream() if stream else None, epochs=EPOCHS)
        seen[dropped] = []
        for epoch in loader.epochs(EPOCHS):
            if dropped and epoch == 2:  # within a pass; at its beginning another order is drawn, as by a stock loader
                iter(loader)
            seen[dropped] += epoch_of(loader, *parts)
    assert seen[True] == seen[False]
    assert each_once(seen[False]) or stream


def test_saved_after_an_iteration_has_begun_and_before_its_first_batch():
    loader, *parts = made(epochs=EPOCHS)
    seen, rest = [], None
    for epoch in loader.epochs(EPOCHS):
        if epoch == 2:
            batches = iter(loader)
            states = copy.deepcopy([loader.state_dict(), *(part.state_dict() for part in parts[:2])])
            random_state = torch.get_rng_state()
            rest = [index.tolist() for *_, index in batches]
            break
        seen += epoch_of(loader, *parts)
    again, model, optimizer, _ = made(epochs=EPOCHS)
    for part, state in zip((again, model, optimizer), states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random_state)
    first = next(iter(again.epochs(EPOCHS)))
    assert first == 2
    assert [index.tolist() for *_, index in again][: len(rest)] == rest


def test_after_a_state_saved_at_the_last_batch_the_next_epoch_is_another_pass():
    loader, *parts = made(budget="epochs", epochs=2)
    for i, _ in enumerate(loader, 1):
        if i == len(loader):
            states = copy.deepcopy([loader.state_dict(), *(part.state_dict() for part in parts[:2])])
    again, model, optimizer, _ = made(budget="epochs", epochs=2)
    for part, state in zip((again, model, optimizer), states, strict=True):
        part.load_state_dict(state)
    assert list(again) == [], "what was left of the first pass"
    assert each_once([i for *_, index in again for i in index.tolist()])
