"""Our batch sampler iterated by anybody but our loader: an error, since such batches would never change."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader

from adaptbs import bs_find, probe_memory
from tests.integration.test_streams import Stream
from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, train

ALL = 200
WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
HOW = pytest.mark.parametrize("how", WORKERS, ids=["alone", "workers", "persistent"])


def made(data=None, **arguments):
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    arguments = {"target": doubling(), **FORCED} | arguments
    return model, optimizer, adaptive(data or Numbered(ALL), model, optimizer, **arguments)


def refused():
    return pytest.raises(RuntimeError, match="has to be iterated itself, not rebuilt around its batch_sampler")


class Shard(BatchSampler):
    """Every n-th batch of a batch sampler, as libraries make it for a rank."""

    def __init__(self, batch_sampler, n: int = 2) -> None:
        self.batch_sampler, self.n = batch_sampler, n

    def __iter__(self):
        for i, batch in enumerate(self.batch_sampler):
            if i % self.n == 0:
                yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler) // self.n


class Forever(BatchSampler):
    """Repeats a batch sampler, to keep its workers alive."""

    def __init__(self, batch_sampler) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self):
        while True:
            yield from iter(self.batch_sampler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, of workers never begun
@HOW
@pytest.mark.parametrize("around", [lambda sampler: sampler, Shard, Forever], ids=["itself", "shard", "forever"])
def test_a_loader_rebuilt_around_it(around, how):
    *_, loader = made()
    rebuilt = DataLoader(loader.dataset, batch_sampler=around(loader.batch_sampler), **how)
    with refused():
        next(iter(rebuilt))


@HOW
def test_before_between_and_inside_of_its_own_epochs(how):
    model, optimizer, loader = made(**how)
    rebuilt = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)
    with refused():
        iter(rebuilt)
    assert sorted(train(model, optimizer, loader, 1).epochs[0]) == list(range(ALL))
    with refused():
        list(loader.batch_sampler)
    seen = []
    for i, batch in enumerate(loader):
        if i == 2:
            with refused():
                iter(rebuilt)
        seen += batch[2].tolist()
    assert sorted(seen) == list(range(ALL))


@HOW
def test_of_a_stream_too(how):
    *_, loader = made(Stream(100), shuffle=None, **how)
    with refused():
        next(iter(loader.batch_sampler))
    assert sorted(i for batch in loader for i in batch[2].tolist()) == list(range(100))
    with refused():
        next(iter(Shard(loader.batch_sampler)))


def test_accelerate_is_told_which_line_to_write():
    *_, loader = made()
    with pytest.raises(TypeError, match=r"loader = adaptbs\.accelerate\.adaptive\(accelerator, loader, model=model"):
        getattr(loader, "_is_accelerate_prepared", False)  # the first that accelerator.prepare() asks a loader


@HOW
def test_the_loaders_own_ways_work(how):
    model, optimizer, loader = made(epochs=1, **how)
    assert sorted(i for batch in loader.plain_batches() for i in batch[2].tolist()) == list(range(ALL))
    with torch.no_grad():
        assert sum(len(batch[2]) for batch in loader) == ALL
    train(model, optimizer, loader, 1)
    state = loader.state_dict()
    *_, resumed = made(epochs=1, **how)
    resumed.load_state_dict(state)
    assert sum(len(batch[2]) for batch in resumed) == ALL
    assert len(loader.batch_sampler) == -(-ALL // loader.batch_size), "at the size of now"


def test_tools_that_read_a_few_batches_work():
    model, _, loader = made()
    assert bs_find(model, None, loader, batch_loss=loss_of, n_batch=2).samples
    probe_memory(model, None, loader, batch_loss=loss_of, max_batch_size=32)


def test_a_step_that_fails_to_begin_leaves_it_closed():
    *_, loader = made(num_workers=1, worker_init_fn=fails)
    with pytest.raises(RuntimeError, match="begins badly"):
        next(iter(loader))
    with refused():
        iter(loader.batch_sampler)


def fails(_: int) -> None:
    raise RuntimeError("begins badly")
