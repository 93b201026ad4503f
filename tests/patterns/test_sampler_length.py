"""A sampler whose len() is not the number of its indices: an epoch delivers all of them."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.utils.data import DataLoader, Sampler

from adaptbs import AdaptiveDataLoader
from adaptbs.sampling import AdaptiveBatchSampler
from tests.integration.test_streams import Stream
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, train

ALL = 512


class Says(Sampler):
    """Yields so many indices in an epoch, and says so many."""

    def __init__(self, yields: int, says: int) -> None:
        self.yields, self.says = yields, says

    def __iter__(self):
        return iter(torch.randperm(self.yields).tolist())

    def __len__(self) -> int:
        return self.says


class Curriculum(Says):
    """Yields more in every epoch, as a curriculum or a balanced subset does."""

    def __iter__(self):
        self.yields *= 2
        return super().__iter__()


def made(sampler, **arguments) -> tuple:
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    arguments = {"target": doubling(), **FORCED, "shuffle": None, "sampler": sampler} | arguments
    return model, optimizer, adaptive(Numbered(ALL), model, optimizer, **arguments)


def warnings_in(caplog) -> list[str]:
    return [record.message for record in caplog.records if "len()" in record.message]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("says", [32, 400, 500, 511, 513, 5000])
def test_every_sample_is_delivered_once_with_one_warning(says, accumulated, workers, caplog):
    model, optimizer, loader = made(Says(ALL, says), accumulation_steps=accumulated, num_workers=workers)
    run = train(model, optimizer, loader, 2)
    assert all(sorted(epoch) == list(range(ALL)) for epoch in run.epochs)
    (warning,) = warnings_in(caplog)
    assert f"yielded {ALL} indices" in warning and f"len() is {says}" in warning and "__len__" in warning


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize(("yields", "says"), [(500, 32), (500, 490), (500, 499), (511, 400), (512, 400), (500, 505)])
def test_with_drop_last_as_many_as_a_stock_loader(yields, says, grows):
    sampler = Says(yields, says)
    model, optimizer, loader = made(sampler, drop_last=True, **({} if grows else {"max_batch_size": 16}))
    (epoch,) = train(model, optimizer, loader, 1).epochs
    stock = sum(len(batch[2]) for batch in DataLoader(Numbered(ALL), 16, sampler=sampler, drop_last=True))
    assert len(epoch) == len(set(epoch)) == stock


@pytest.mark.parametrize("says", [32, 400, 512, 600])
def test_a_batch_that_stays_is_cut_as_stock_cuts_it(says):
    sampler = Says(500, says)
    *_, loader = made(sampler, max_batch_size=16)
    delivered = []
    for batches in (loader, DataLoader(Numbered(ALL), 16, sampler=sampler)):
        torch.manual_seed(3)
        delivered.append([batch[2].tolist() for batch in batches])
    assert delivered[0] == delivered[1]


def test_growth_leaves_no_shorter_tail_than_stock():
    model, optimizer, loader = made(Says(500, 100))
    run = train(model, optimizer, loader, 1)
    assert max(run.sizes) >= 64
    assert min(run.sizes) >= 500 % 16


def test_a_length_that_is_right_or_an_estimate_of_a_stream_is_no_reason_to_warn(caplog):
    model, optimizer, loader = made(Says(ALL, ALL))
    train(model, optimizer, loader, 2)
    list(adaptive(Stream(100), model, optimizer, shuffle=None, overhead=0))
    assert not warnings_in(caplog)


def test_an_epoch_may_have_another_length_each_time(caplog):
    model, optimizer, loader = made(Curriculum(64, 200))
    run = train(model, optimizer, loader, 3)
    assert [sorted(epoch) for epoch in run.epochs] == [list(range(n)) for n in (128, 256, 512)]
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("after", [1, 3, 5, 8])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_saved_anywhere_and_resumed_is_never_stopped(after, accumulated):
    def begin():
        size = {"target": lambda noise_scale, size, _: size + 16}
        model, optimizer, loader = made(Says(ALL, 100), accumulation_steps=accumulated, **size)
        return loader, (batch[2].tolist() for batch in iterated(model, optimizer, loader))

    torch.manual_seed(5)
    _, batches = begin()
    whole = list(batches)
    stopped, batches = begin()
    begun = list(itertools.islice(batches, after))
    saved, random = copy.deepcopy(stopped.state_dict()), torch.get_rng_state()
    resumed, rest = begin()
    resumed.load_state_dict(saved)
    torch.set_rng_state(random)
    assert begun + list(rest) == whole
    assert begun + list(batches) == whole
    assert sorted(itertools.chain(*whole)) == list(range(ALL))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("says", [32, 400])
def test_a_run_that_ends_by_progress_is_not_cut_by_a_wrong_plan(says, epochs, caplog):
    measured = {"overhead": 0.3, "step_time": (1.0, 0.0), "target": "goodput", "epochs": epochs}
    model, optimizer, loader = made(Says(ALL, says), **measured)
    samples = []
    for _ in loader.epochs(epochs):
        samples.append(sum(len(batch[2]) for batch in iterated(model, optimizer, loader)))
    assert samples == [ALL] * epochs
    (warning,) = warnings_in(caplog)
    assert "ends after its epochs, not by its progress" in warning


def test_such_a_run_goes_on_where_it_was_saved():
    measured = {"overhead": 0.3, "step_time": (1.0, 0.0), "target": "goodput", "epochs": 3, "max_batch_size": 16}
    model, optimizer, loader = made(Says(ALL, 32), **measured)
    batches = itertools.chain.from_iterable(iterated(model, optimizer, loader) for _ in loader.epochs(3))
    assert len(list(itertools.islice(batches, 40))) == 40
    saved = loader.state_dict()
    model, optimizer, resumed = made(Says(ALL, 32), **measured)
    resumed.load_state_dict(copy.deepcopy(saved))
    samples = [sum(len(batch[2]) for batch in iterated(model, optimizer, resumed)) for _ in resumed.epochs(3)]
    assert sum(samples) + 40 * 16 == 3 * ALL


def iterated(model, optimizer, loader):
    for batch in loader:
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield batch


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("yields", "says"), [(511, 100), (511, 510), (100, 511)])
def test_ranks_share_all_of_it_in_equally_many_batches(yields, says, drop_last):
    delivered = []
    for rank in range(2):
        *_, loader = made(
            Says(yields, says), batch_size=8, rank=rank, world_size=2, step_time=(1.0, 0.0), drop_last=drop_last
        )
        torch.manual_seed(4)
        delivered.append([batch[2].tolist() for batch in loader])
    assert [len(batch) for batch in delivered[0]] == [len(batch) for batch in delivered[1]]
    shared = list(itertools.chain(*delivered[0], *delivered[1]))
    assert len(set(shared)) == (yields - yields % 16 if drop_last else yields)
    assert len(shared) <= yields + 1


@given(
    yields=st.integers(0, 600), says=st.integers(1, 600), start=st.integers(1, 64), drop_last=st.booleans(),
    drawn=st.lists(st.integers(1, 200), min_size=1, max_size=20), parts=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_whatever_is_said_and_drawn(yields, says, start, drop_last, drawn, parts):
    class Source:
        def __iter__(self):
            return iter(range(yields))

        def __len__(self) -> int:
            return says

    cycle = itertools.cycle(drawn)
    cut = AdaptiveBatchSampler(Source(), lambda: parts * next(cycle), start, drop_last, parts)
    batches = list(iter(cut))
    delivered = list(itertools.chain(*batches))
    assert delivered == list(range(len(delivered))) and all(batches)
    if not drop_last:
        assert len(delivered) == yields
    elif says <= yields:
        assert len(delivered) == yields - yields % start
    assert [issued.num_samples for issued in cut.issued] == [len(batch) for batch in batches]
    assert all(issued.num_samples <= issued.cut_size for issued in cut.issued)


def test_the_loader_can_be_taken_over():
    stock = DataLoader(Numbered(ALL), 16, sampler=Says(ALL, 40))
    model = network()
    loader = AdaptiveDataLoader.from_loader(
        stock, model=model, optimizer=SGD(model.parameters(), 0.01), overhead=0, epochs=1
    )
    assert sorted(i for batch in loader for i in batch[2].tolist()) == list(range(ALL))


@pytest.fixture(autouse=True)
def _hear(caplog):
    caplog.set_level(logging.WARNING, "adaptbs")


class Endless(Says):
    """Yields one permutation after another, as the samplers of StyleGAN and detectron2, and has been given a length."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield from torch.randperm(self.yields, generator=generator).tolist()


def test_a_sampler_without_an_end_is_said_once(caplog):
    model, optimizer, loader = made(Endless(ALL, ALL), epochs=2)
    batches, taken = iter(loader), 0
    while taken < 12 * ALL:
        batch = next(batches)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        taken += len(batch[0])
    (warning,) = warnings_in(caplog)
    assert "goes on" in warning and "StopIteration" in warning and "loader.progress" in warning
    assert loader.progress == 1


def test_the_order_of_one_cannot_be_saved_and_the_run_goes_on():
    runs = []
    for saves in (True, False):
        torch.manual_seed(0)
        model, optimizer, loader = made(Endless(ALL, ALL), epochs=2)
        seen = []
        for number, batch in enumerate(loader):
            seen += batch[-1].tolist()
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if saves and number == 3:
                with pytest.raises(RuntimeError, match=r"sampler= cannot be saved: the Endless .* StopIteration"):
                    loader.state_dict()
            if loader.progress == 1:
                break
        runs.append(seen)
    assert runs[0] == runs[1]
