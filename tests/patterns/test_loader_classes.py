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
