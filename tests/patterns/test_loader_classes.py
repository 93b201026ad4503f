"""Classes of DataLoaders taken over: those that iterate in a way of their own are refused, the others are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, network


class Normalizing(DataLoader):
    def __iter__(self):
        for x, y, i in super().__iter__():
            yield x + 100, y, i


class Prefetching(DataLoader):
    """Copies batches to the device on the way."""

    def __iter__(self):
        return map(list, super().__iter__())


class Stateful(DataLoader):
    """Goes on in mid-epoch, by an iterator of its own."""

    def _get_iterator(self):
        return Transforming(super()._get_iterator())


class Transforming:
    def __init__(self, batches: Iterator) -> None:
        self.batches = batches

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)


class Repeating(DataLoader):
    """Keeps its workers alive, by a sampler without end."""

    @property
    def _index_sampler(self):
        return iter(int, 1)


class Mixed(Normalizing):
    """Has it from its parent."""


class Collating(DataLoader):
    """Only chooses arguments, as of libraries for graphs."""

    def __init__(self, dataset, batch_size: int = 1, **arguments) -> None:
        super().__init__(dataset, batch_size, collate_fn=collate, **arguments)

    def __len__(self) -> int:
        return super().__len__()


def collate(examples):
    x, y, i = zip(*examples, strict=True)
    return torch.stack(x), torch.stack(y), torch.tensor(i)


class Named(DataLoader):
    name = "train"


def taken_over(loader) -> AdaptiveDataLoader:
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    return AdaptiveDataLoader.from_loader(loader, model=model, optimizer=optimizer, overhead=0)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Normalizing, "__iter__"), (Prefetching, "__iter__"), (Mixed, "__iter__"),
        (Stateful, "_get_iterator"), (Repeating, "_index_sampler"),
    ],
)  # fmt: skip
def test_a_class_that_iterates_in_a_way_of_its_own(kind, what):
    with pytest.raises(TypeError) as raised:
        taken_over(kind(Numbered(64), 8))
    for word in (f"loader= of type {kind.__name__}", what, "would be lost", "build AdaptiveDataLoader", "state_dict()"):
        assert word in str(raised.value)


@pytest.mark.parametrize("kind", [Collating, Named])
def test_a_class_that_only_chooses_arguments(kind):
    stock = kind(Numbered(64), 8)
    assert [batch[2].tolist() for batch in taken_over(stock)] == [batch[2].tolist() for batch in stock]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize(("rank", "world_size"), [(None, None), (1, 2)])
def test_what_scripts_read_of_a_stock_loader_is_there(rank, world_size, accumulation_steps):
    model = torch.nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        Numbered(64), 4, model=model, optimizer=optimizer, epochs=2, overhead=0, max_batch_size=8,
        target=lambda noise, size, progress: 10**6, decide_every=1e-6, accumulation_steps=accumulation_steps,
        rank=rank, world_size=world_size, step_time=(1e-3, 1e-6),
    )  # fmt: skip
    assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (4, False) == (loader.batch_size, False)
    sizes = []
    for step, (x, y, _) in enumerate(loader, 1):
        sizes.append(len(x))
        torch.nn.functional.mse_loss(model(x), y).backward()
        if step % accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert loader.batch_sampler.batch_size == 8 == loader.batch_size == max(sizes)
