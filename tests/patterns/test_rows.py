"""Batches whose rows are not their samples: the batch is held where a larger one would lose some."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, default_collate

from tests.integration.test_streams import Stream
from tests.integration.training import FORCED, adaptive, doubling, network

N = 256


class Items(Dataset):
    """Items made by a function of their index; counts how often each is fetched."""

    def __init__(self, make) -> None:
        self.make, self.fetched = make, torch.zeros(N, dtype=torch.int64)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        self.fetched[i] += 1
        return self.make(i)


def row(i: int) -> torch.Tensor:
    return torch.full((8,), float(i))


def first(items):
    """For datasets whose items are batches."""
    return items[0]


def batch_of_4(i: int):
    return torch.stack([row(i)] * 4), torch.zeros(4, 1)


def batch_of_1(i: int):
    return {"pixels": row(i)[None], "prompt": ["a cat"]}


def text(i: int):
    return [i] * (5 + i % 7)


def packed(texts):
    """Texts put end to end and cut into rows of 64 tokens, as packing does; the rest of them is lost."""
    tokens = [token for text in texts for token in text] + [0] * 64
    return torch.tensor(tokens[: len(tokens) // 64 * 64]).reshape(-1, 64)


def time_first(items):
    """(time, batch, features)"""
    return torch.stack(items).reshape(len(items), 4, 2).transpose(0, 1)


def two_views(items):
    return torch.cat([torch.stack(items), torch.stack(items) + random.random()])


def lists(items):
    """As torchvision's detection reference collates."""
    return tuple(zip(*items, strict=True))


def detection(i: int):
    return torch.zeros(3, 4 + i % 2, 5), {"boxes": torch.zeros(i % 3, 4)}


def joined(items):
    """Items of several rows, put together."""
    return tuple(map(torch.cat, zip(*items, strict=True)))


class Graphs:
    """A batch whose layout does not tell how many samples it holds."""

    def __init__(self, items) -> None:
        self.items = items


HELD = {
    "item is a batch": (batch_of_4, first, 1),
    "item is a batch of one": (batch_of_1, first, 1),
    "packed texts": (text, packed, 4),
}
GROWS = {
    "time comes first": (row, time_first, 16),
    "two views": (row, two_views, 16),
    "one sample, two views": (row, two_views, 1),
    "lists": (detection, lists, 2),
    "one list": (detection, lists, 1),
    "batch joined of batches": (batch_of_4, joined, 1),
    "list of samples": (detection, list, 3),
    "graphs": (row, Graphs, 4),
    "default": (row, default_collate, 1),
    "a function that collates like it": (row, lambda items: default_collate(items), 1),
    "named": (row, lambda items: SimpleNamespace(x=items), 2),
}


def made(make, collate, batch_size, **arguments):
    model, data = network(), Items(make)
    arguments = {"target": doubling(2), "collate_fn": collate, "epochs": 2, "transfer": (), **FORCED} | arguments
    arguments["max_batch_size"] = 32
    return data, adaptive(data, model, SGD(model.parameters(), 0.01), batch_size, **arguments)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", HELD)
def test_it_is_held_with_one_warning_where_a_larger_batch_would_lose_rows(case, workers, caplog):
    make, collate, batch_size = HELD[case]
    _, loader = made(make, collate, batch_size, num_workers=workers, shuffle=False)
    stock = DataLoader(Items(make), batch_size, collate_fn=collate)
    for _ in range(2):
        assert [str(batch) for batch in loader] == [str(batch) for batch in stock]
    assert loader.batch_size == batch_size
    assert caplog.text.count("do not follow its samples") == 1 and len(caplog.records) == 1
    record = loader.history.records[-1]
    assert record["reason"] == record["doubt"] == "rows do not follow samples"


@pytest.mark.parametrize("case", GROWS)
def test_it_grows_where_it_would_not(case, caplog):
    make, collate, batch_size = GROWS[case]
    _, loader = made(make, collate, batch_size)
    for _ in range(2):
        for _ in loader:
            pass
    assert loader.batch_size > batch_size and not caplog.text


def test_the_look_draws_nothing_and_is_made_once():
    data, loader = made(row, two_views, 16, shuffle=False)
    random.seed(3)
    seen = [batch[16, 0].item() - batch[0, 0].item() for batch in loader if len(batch) == 32]
    random.seed(3)
    expected = [random.random() for _ in seen]
    assert seen == pytest.approx(expected, abs=1e-4)
    assert data.fetched.sum() == N + 1


def test_the_usual_batch_is_not_fetched_again():
    data, loader = made(row, lambda items: torch.stack(items), 16)
    list(loader)
    assert data.fetched.max() == 1


def test_a_collation_that_takes_no_two_samples_alike_is_left_alone(caplog):
    """Nothing is known of it, and the batch has a row a sample."""

    def collate(items):
        if len(items) > 1 and torch.equal(items[0], items[1]):
            raise ValueError("one sample twice")
        return torch.stack(items)

    _, loader = made(row, collate, 1, target=lambda noise, size, progress: 4)
    assert sum(len(batch) for batch in loader) == N
    assert loader.batch_size == 4 and not caplog.text


def test_a_stream_of_batches_is_held(caplog):
    model = network()
    loader = adaptive(
        Stream(64, shards=False), model, SGD(model.parameters(), 0.01), 1, shuffle=None,
        collate_fn=lambda items: [torch.stack([items[0][0]] * 4)], target=doubling(2), transfer=(), **FORCED,
    )  # fmt: skip
    for _ in loader:
        pass
    assert loader.batch_size == 1 and caplog.text.count("there is no way to try") == 1


def test_rows_of_another_number_that_cannot_be_tried_hold_it(caplog):
    def collate(items):
        if len(items) == 2 and torch.equal(items[0], items[1]):
            raise ValueError("one sample twice")
        return torch.stack([item for item in items for _ in range(2)])

    _, loader = made(row, collate, 16)
    for _ in loader:
        pass
    assert loader.batch_size == 16
    assert caplog.text.count("there is no way to try") == 1 and len(caplog.records) == 1


def take_apart(batch):
    return [part[0] for part in batch]


def flatten(batch):
    return [part.flatten(0, 1) for part in batch]


def squeeze(batch):
    return [part.squeeze(0) for part in batch]


def as_it_is(batch):
    return batch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("way", "make", "start", "grows"),
    [
        (take_apart, batch_of_4, 1, False),
        (squeeze, batch_of_4, 1, False),
        (flatten, batch_of_4, 1, False),
        (flatten, batch_of_4, 2, True),
        (as_it_is, lambda i: (row(i), torch.zeros(1)), 1, True),
    ],
)
def test_what_the_loop_takes_of_a_batch_of_one(way, make, start, grows, workers, caplog):
    """Its only sample, which is a batch; or all rows of its samples, which looks the same."""
    model = torch.nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.0)
    loader = adaptive(
        Items(make), model, optimizer, start, num_workers=workers, epochs=1, overhead=0, max_batch_size=32,
        target=lambda noise, size, progress: start if progress < 0.1 else 8,
    )  # fmt: skip
    rows = 0
    for batch in loader:
        x, y = way(batch)
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        rows += x.shape[0]
    assert rows == len(make(0)[0]) * N if make is batch_of_4 else rows == N
    assert (loader.batch_size > start) == grows
    assert caplog.text.count("x[0]") == len(caplog.records) == (not grows)
    assert not model._forward_pre_hooks


def test_a_loop_that_fetches_one_ahead_takes_it_apart_later(caplog):
    model = torch.nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.0)
    loader = adaptive(Items(batch_of_4), model, optimizer, 1, epochs=1, target=doubling(9), **FORCED)
    batches = iter(loader)
    this, rows = next(batches), 0
    while this is not None:
        following = next(batches, None)
        x, y = take_apart(this)
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        rows, this = rows + len(x), following
    assert rows == 4 * N and loader.batch_size == 1 and len(caplog.records) == 1
