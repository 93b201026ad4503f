"""Batches of layouts that torch or adaptbs cannot cut, and lists of samples."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.optim import SGD
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader, bs_find

ROWS = [torch.full((8,), float(i)) for i in range(64)]


def packed_rows(items):
    return pack_sequence([item.reshape(-1, 1)[: 2 + len(items)] for item in items]), torch.zeros(len(items))


def nested_rows(items):
    return torch.nested.nested_tensor([item.reshape(-1, 1) for item in items]), torch.zeros(len(items))


def jagged_rows(items):
    rows = [item.reshape(-1, 1) for item in items]
    return torch.nested.nested_tensor(rows, layout=torch.jagged), torch.zeros(len(items))


def of_packed(layer, x):
    return layer(x.data)


def of_nested(layer, x):
    return layer(x).to_padded_tensor(0.0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("loss_is_given", [False, True])
@pytest.mark.parametrize(
    ("collate", "call"), [(packed_rows, of_packed), (nested_rows, of_nested), (jagged_rows, of_nested)]
)
def test_batches_whose_rows_are_not_told_apart_train_as_ever(collate, call, start, loss_is_given, caplog):
    """They cannot be cut, and torch refuses to say the shape of a nested tensor."""

    def loss_of(model, batch):
        return (call(model, batch[0]).mean() - batch[1].mean()) ** 2

    weights = []
    for adapts in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 1)
        optimizer = SGD(model.parameters(), 1e-6)
        loader = DataLoader(ROWS, start, collate_fn=collate)
        if adapts:
            loss = {"batch_loss": loss_of} if loss_is_given else {}
            loader = AdaptiveDataLoader(
                ROWS, start, collate_fn=collate, model=model, optimizer=optimizer, epochs=1, **loss
            )
        for batch in loader:
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights) and loader.batch_size == start and caplog.records


@pytest.mark.parametrize("source", ["in_step", "halves"])
def test_samples_in_a_list_are_measured_as_samples(source):
    """Such as pictures of several sizes; the first has as many channels as it has."""
    data = [(torch.randn(3, 4 + i % 2, generator=torch.Generator().manual_seed(i)), float(i)) for i in range(64)]

    def collate(items):
        return [x for x, _ in items], torch.tensor([y for _, y in items])

    def loss_of(model, batch):
        return ((model(torch.stack([x.mean(1) for x in batch[0]]))[:, 0] - batch[1]) ** 2).mean()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), 0.0)
    loader = AdaptiveDataLoader(
        data, 8, collate_fn=collate, model=model, optimizer=optimizer, epochs=2, source=source, batch_loss=loss_of,
        overhead=0.9, step_time=(1e-3, 1e-6),
    )  # fmt: skip
    for batch in loader:
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = [record for record in loader.history.records if record["event"] == "measurement"]
    assert measured and {record["doubt"] for record in measured} == {None}
    found = bs_find(model, None, DataLoader(data, 8, collate_fn=collate), batch_loss=loss_of)
    assert found.batch_size and found.curve[-1].caveat is None


def test_bs_find_says_what_to_do_about_samples_put_end_to_end():
    data = [torch.ones(2**i, 3) for i in range(8)]
    model = torch.nn.Linear(3, 1)
    counts = {"counts": lambda items: torch.tensor([len(x) for x in items]), "x": torch.cat}

    def find(names):
        loader = DataLoader(data, 2, collate_fn=lambda items: {name: counts[name](items) for name in names})
        return bs_find(model, None, loader, batch_loss=lambda m, b: (m(b["x"]) ** 2).mean() * b["counts"].sum())

    with pytest.raises(ValueError, match=r"put a tensor with a row a sample before it"):
        find(["x", "counts"])
    assert find(["counts", "x"]).curve
