"""Looking at a loader's batches leaves no trace in it, nor in what it makes them of."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from adaptbs.model import length_of, preserved_loader


class Noisy:
    """A transform that draws from a generator of its own."""

    def __init__(self) -> None:
        self.random, self.calls = np.random.default_rng(0), 0

    def __call__(self, x):
        self.calls += 1
        return x + self.random.normal()


class Numbers(Dataset):
    def __init__(self, n: int) -> None:
        self.n, self.transform, self.seen = n, Noisy(), []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i):
        self.seen.append(i)
        return torch.tensor([float(self.transform(i))])


class Shuffled(Sampler):
    """Shuffles its order in place, a list or an array, by a generator that is not torch's."""

    def __init__(self, order, generator) -> None:
        self.order, self.generator, self.epoch = order, generator, 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):
        self.epoch += 1
        self.generator.shuffle(self.order)
        try:
            yield from self.order
        finally:
            self.epoch += 100


MADE = 0


@pytest.mark.parametrize("n", [64, 5000])
@pytest.mark.parametrize("generator", [random.Random, np.random.default_rng, np.random.RandomState])
@pytest.mark.parametrize("whole", [True, False])
def test_samplers_datasets_and_collation_of_the_users_own_are_as_they_were(n, generator, whole):
    def collate(items):
        global MADE
        MADE += 1
        return default_collate(items)

    order = list(range(n)) if generator is random.Random else np.arange(n)
    data, sampler = Numbers(n), Shuffled(order, generator(0))
    loader = DataLoader(data, 8, sampler=sampler, collate_fn=collate)
    before = MADE, data.transform.random.bit_generator.state
    with preserved_loader(loader) as batches:
        first = next(batches)
        if whole:
            list(batches)
    assert (MADE, data.transform.random.bit_generator.state) == before
    assert (data.seen, data.transform.calls, sampler.epoch, list(order)) == ([], 0, 0, list(range(n)))
    assert torch.equal(next(iter(loader)), first), "so it delivers what it would have"


def test_a_generator_of_the_users_own_goes_on_after_what_was_read():
    def endless():
        while True:
            yield torch.ones(2)

    generator = endless()
    with preserved_loader(generator) as batches:
        next(batches)
    assert len(next(generator)) == 2


class Stream(IterableDataset):
    def __init__(self, error) -> None:
        self.error = error

    def __len__(self):
        if self.error:
            raise self.error
        return 2

    def __iter__(self):
        return iter([torch.ones(1)] * 2)


@pytest.mark.parametrize("error", [TypeError, NotImplementedError, AssertionError, None])
def test_the_length_of_a_stream_that_has_none_is_not_known(error):
    loader = DataLoader(Stream(error), 1)
    assert length_of(loader) == length_of(loader.dataset) == (None if error else 2)


def test_asking_for_the_length_of_a_stream_is_forgotten_as_it_makes_torch_warn():
    loader = DataLoader(Stream(None), 1)
    with preserved_loader(loader):
        assert length_of(loader) == 2
    assert loader._IterableDataset_len_called is None
