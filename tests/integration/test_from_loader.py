"""An existing DataLoader taken over."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from adaptbs import AdaptiveDataLoader
from tests.integration.test_streams import Stream
from tests.integration.training import Numbered, loss_of, network


def taken_over(loader, **arguments) -> AdaptiveDataLoader:
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    arguments = {"max_batch_size": 8, "epochs": 1} | arguments
    return AdaptiveDataLoader.from_loader(loader, model=model, optimizer=optimizer, batch_loss=loss_of, **arguments)


def collate(examples):
    return {"i": torch.tensor([i for _, _, i in examples])}


@pytest.mark.parametrize(
    "how",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True, "num_workers": 2, "prefetch_factor": 3, "persistent_workers": True},
        {"sampler": WeightedRandomSampler(torch.arange(1.0, 101), 60, generator=torch.Generator())},
        {"collate_fn": collate, "timeout": 0, "worker_init_fn": None},
        {"shuffle": True, "generator": torch.Generator()},
    ],
    ids=["shuffle", "workers", "weighted", "collate", "generator"],
)
def test_it_delivers_what_the_loader_delivered(how):
    stock = DataLoader(Numbered(100), 8, **how)

    def delivered(loader):
        for drawn in (how.get("generator"), getattr(how.get("sampler"), "generator", None)):
            if drawn is not None:
                drawn.manual_seed(3)
        torch.manual_seed(1)
        return [(batch["i"] if isinstance(batch, dict) else batch[2]).tolist() for batch in loader]

    ours = taken_over(stock, overhead=0)
    assert delivered(ours) == delivered(stock)
    for name in ("num_workers", "prefetch_factor", "persistent_workers", "drop_last", "batch_size", "collate_fn"):
        assert getattr(ours, name) == getattr(stock, name)
    assert ours.sampler is stock.sampler


class Told(BatchSampler):
    """As sentence-transformers' default one: it is told the epoch, and cuts as torch's does."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Sorted(BatchSampler):
    def __iter__(self):
        return iter(sorted(super().__iter__()))


@pytest.mark.parametrize("kind", [BatchSampler, Told])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_batch_sampler_that_cuts_as_torchs_does(kind, drop_last):
    stock = DataLoader(Numbered(100), batch_sampler=kind(RandomSampler(range(100)), 8, drop_last))
    ours = taken_over(stock, overhead=0)
    delivered = []
    for loader in (stock, ours):
        torch.manual_seed(1)
        delivered.append([i.tolist() for _ in range(2) for *_, i in loader])
    assert delivered[0] == delivered[1] and (ours.batch_size, ours.drop_last) == (8, drop_last)


def test_a_stream_too():
    stock = DataLoader(Stream(100), 8)
    assert [b[2].tolist() for b in taken_over(stock, overhead=0)] == [b[2].tolist() for b in stock]


def test_arguments_go_before_what_it_was_made_with():
    ours = taken_over(DataLoader(Numbered(100), 8, drop_last=True), batch_size=16, drop_last=False, max_batch_size=32)
    assert (ours.batch_size, ours.drop_last) == (16, False)


class Batched(IterableDataset):
    """Yields whole batches, as WebDataset's `.batched()`."""

    def __iter__(self):
        return iter(torch.zeros(4, 8, 1))


@pytest.mark.parametrize(
    ("loader", "error", "words"),
    [
        ([1, 2], TypeError, "must be a torch.utils.data.DataLoader"),
        (DataLoader(Numbered(8), batch_size=None), ValueError, "does not batch"),
        (DataLoader(Batched(), batch_size=None), ValueError, r"let the dataset yield single samples .*__len__"),
        (DataLoader(Numbered(8), batch_sampler=[[0, 1], [2, 3]]), ValueError, "batch_sampler= of its own"),
        (
            DataLoader(Numbered(8), batch_sampler=Sorted(RandomSampler(range(8)), 2, False)),
            ValueError, "batch_sampler= of its own",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over_is_refused_with_what_to_do(loader, error, words):
    with pytest.raises(error, match=words):
        taken_over(loader)
