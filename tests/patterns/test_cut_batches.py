"""Batches whose layout does not show which entries belong to which sample: cut as `split=` says, or not at all."""

from __future__ import annotations

import re

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, CancelFitException, DataLoaders, Learner
from fastai.data.load import DataLoader as FastaiLoader
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize

FIXED = {"epochs": 1, "overhead": 0, "step_time": (1e-3, 1e-6)}
SIZE = 16


def said_by(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def items(n: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images [3, 8, 8], and one to three targets [targets, 3] each."""
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 8, 8, generator=g), torch.randn(1 + i % 3, 3, generator=g)) for i in range(n)]


class Net(nn.Module):
    """Three numbers of an image; runs out of memory beyond `limit` images while it trains."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out, self.limit = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), limit

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("simulated")
        return self.out(self.conv(x).relu().mean((2, 3)))


def mean_of(predicted, targets) -> torch.Tensor:
    return torch.stack([((p - t) ** 2).mean() for p, t in zip(predicted, targets, strict=True)]).mean()


class Graphs:
    """A batch that only its owner can read."""

    def __init__(self, images, targets) -> None:
        self.images, self.targets = images, targets


def yolo(batch):
    """Images, and rows of [image in the batch, target], for all images together."""
    rows = [torch.cat([torch.full((len(t), 1), float(i)), t], 1) for i, (_, t) in enumerate(batch)]
    return torch.stack([x for x, _ in batch]), torch.cat(rows)


def yolo_targets(rows, n):
    return [rows[rows[:, 0] == i][:, 1:] for i in range(n)]


def yolo_split(batch, start, stop):
    x, rows = batch
    kept = rows[(rows[:, 0] >= start) & (rows[:, 0] < stop)].clone()
    kept[:, 0] -= start
    return x[start:stop], kept


def dicts(batch):
    """Images, and a tuple of a dict each, as detection references collate."""
    return torch.stack([x for x, _ in batch]), tuple({"boxes": t, "size": torch.tensor([8, 8])} for _, t in batch)


def counted(batch):
    """Targets end to end, and how many each image has."""
    return {
        "x": torch.stack([x for x, _ in batch]),
        "targets": torch.cat([t for _, t in batch]),
        "counts": torch.tensor([len(t) for _, t in batch]),
    }


def counted_split(batch, start, stop):
    targets = batch["targets"].split(batch["counts"].tolist())
    parts = {name: batch[name][start:stop] for name in ("x", "counts")}
    return {**parts, "targets": torch.cat(targets[start:stop])}


def tuples(batch):
    """Neither images nor targets are stacked: the first tensor's length is that of its channels."""
    return tuple(zip(*batch, strict=True))


LAYOUTS = {
    "targets name their image": (
        yolo,
        yolo_split,
        lambda m, b: mean_of(m(b[0]), yolo_targets(b[1], len(b[0]))),
    ),
    "a tuple of dicts": (
        dicts,
        lambda b, start, stop: (b[0][start:stop], b[1][start:stop]),
        lambda m, b: mean_of(m(b[0]), [t["boxes"] for t in b[1]]),
    ),
    "targets end to end, and their counts": (
        counted,
        counted_split,
        lambda m, b: mean_of(m(b["x"]), b["targets"].split(b["counts"].tolist())),
    ),
    "tuples": (
        tuples,
        lambda b, start, stop: tuple(part[start:stop] for part in b),
        lambda m, b: mean_of(m(torch.stack(b[0])), b[1]),
    ),
    "an object": (
        lambda batch: Graphs(*tuples(batch)),
        lambda b, start, stop: Graphs(b.images[start:stop], b.targets[start:stop]),
        lambda m, b: mean_of(m(torch.stack(b.images)), b.targets),
    ),
}


def step(collate, loss, limit: int = 10**9, **arguments):
    """Gradient and loss of one `loader.step`."""
    model = Net(limit)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    loader = AdaptiveDataLoader(
        items(), SIZE, collate_fn=collate, model=model, optimizer=SGD(model.parameters(), 1.0), batch_loss=loss,
        max_batch_size=SIZE, **FIXED, **arguments,
    )  # fmt: skip
    value = loader.step(next(iter(loader)))
    return before - nn.utils.parameters_to_vector(model.parameters()).detach(), value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_cut_as_the_user_says(layout):
    collate, split, loss = LAYOUTS[layout]
    whole, pieces = step(collate, loss, split=split), step(collate, loss, limit=SIZE // 4, split=split)
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "an object"])
def test_without_a_word_the_error_of_memory_goes_through_with_the_advice(layout, caplog):
    collate, _, loss = LAYOUTS[layout]
    with pytest.raises(torch.OutOfMemoryError, match="simulated") as raised:
        step(collate, loss, limit=SIZE // 4)
    assert "split=(batch, start, stop)" in said_by(raised.value)
    assert caplog.text.count("split=(batch, start, stop)") == 1


def pairs_of(x):
    """Two views of each, as contrastive losses compare."""
    return torch.cat([x, x.roll(1, -1)])


def contrastive(model, batch):
    z = F.normalize(model(pairs_of(batch[0])), dim=1)
    n = len(z)
    return F.cross_entropy((z @ z.t() / 0.5).masked_fill(torch.eye(n) > 0, -1e9), torch.arange(n).roll(n // 2))


def mean_over_targets(model, batch):
    counts = torch.tensor([len(t) for t in batch[1]])
    return F.mse_loss(model(batch[0]).repeat_interleave(counts, 0), torch.cat(batch[1]))


def centred(model, batch):
    p = model(batch[0])
    return (p - p.mean(0)).square().mean()


def lists(batch):
    return torch.stack([x for x, _ in batch]), [t for _, t in batch]


@pytest.mark.parametrize("loss", [contrastive, mean_over_targets, centred])
def test_parts_whose_losses_do_not_make_the_wholes_are_not_trained_on(loss, caplog):
    with pytest.raises(torch.OutOfMemoryError) as raised:
        step(lists, loss, limit=SIZE if loss is contrastive else SIZE // 2)
    assert re.search("add up to .*, and that of the whole is", said_by(raised.value))
    assert len(caplog.records) == 1


def summed(model, batch):
    return SIZE * mean_of(model(batch[0]), batch[1]) * len(batch[0]) / SIZE


@pytest.mark.parametrize("loss", [lambda m, b: mean_of(m(b[0]), b[1]), summed])
def test_a_list_with_an_entry_a_sample_is_cut_and_verified(loss):
    torch.testing.assert_close(step(lists, loss, limit=SIZE // 4), step(lists, loss))


def exceeding(**arguments):
    model = Net()
    return AdaptiveDataLoader(
        items(256), SIZE, collate_fn=yolo, model=model, optimizer=SGD(model.parameters(), 0.01),
        batch_loss=LAYOUTS["targets name their image"][2], exceed_memory=True, target=lambda *_: 32,
        **FIXED | {"epochs": 2}, **arguments,
    )  # fmt: skip


def test_a_batch_that_cannot_be_cut_does_not_grow_past_memory(caplog):
    """`exceed_memory=True` counts on pieces. A resumed run may be told how to cut."""
    loader = exceeding()
    for batch in loader:
        loader.step(batch)
    assert loader.batch_size == SIZE and loader.history.records[-1]["reason"] == "batch cannot be cut"
    assert caplog.text.count("split=") == 1
    resumed = exceeding(split=yolo_split)
    resumed.load_state_dict(loader.state_dict())
    for batch in resumed:
        resumed.step(batch)
    assert resumed.batch_size == 32


def measured(layout, **arguments):
    collate, _, loss = LAYOUTS[layout]
    model = Net()
    optimizer = SGD(model.parameters(), 0.05)
    loader = AdaptiveDataLoader(
        items(256), SIZE, collate_fn=collate, model=model, optimizer=optimizer, batch_loss=loss, source="halves",
        epochs=2, overhead=0.5, max_batch_size=SIZE, step_time=(1e-3, 1e-6), **arguments,
    )  # fmt: skip
    for _ in range(2):
        for batch in loader:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return loader


def test_halves_are_cut_as_the_user_says():
    found = [measured(layout, split=LAYOUTS[layout][1]).noise_scale for layout in LAYOUTS]
    assert [each.trace for each in found] == pytest.approx([found[0].trace] * len(found), rel=1e-4)
    assert found[0].measurements > 4


@pytest.mark.parametrize("layout", list(LAYOUTS)[:3])
def test_without_a_word_halves_are_not_measured_and_the_batch_is_held(layout, caplog):
    loader = measured(layout)
    assert loader.noise_scale is None and loader.batch_size == SIZE
    assert caplog.text.count("split=(batch, start, stop)") == 1 == len(caplog.records)


class Grab(Callback):
    def before_step(self):
        self.learn.grabbed = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        raise CancelFitException


def fastai_step(collate, loss_func, limit: int = 10**9, **arguments):
    def loader():
        return FastaiLoader(items(), bs=SIZE, create_batch=collate)

    learn = Learner(DataLoaders(loader(), loader()), Net(limit), loss_func=loss_func, cbs=Grab())
    callback = AdaptiveBatchSize(max_batch_size=SIZE, overhead=0, step_time=(1e-3, 1e-6), **arguments)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=callback)
    return learn.grabbed


def of_yolo(predicted, rows):
    return mean_of(predicted, yolo_targets(rows, len(predicted)))


def test_a_learner_cuts_as_the_user_says_or_not_at_all():
    whole = fastai_step(yolo, of_yolo)
    torch.testing.assert_close(fastai_step(yolo, of_yolo, limit=4, split=yolo_split), whole)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        fastai_step(yolo, of_yolo, limit=4)
    assert "split=(batch, start, stop)" in said_by(raised.value)


def test_split_that_is_no_function():
    with pytest.raises(TypeError, match="split=3: it must be a function"):
        AdaptiveBatchSize(split=3)


class Attention(nn.Module):
    """One block of torch's, which drops parts of its attention by default. Runs out of memory beyond `limit` texts."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.limit = nn.Embedding(20, 16), limit
        self.block, self.out = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 20)

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("simulated")
        return self.out(self.block(self.words(x)).mean(1))


def test_a_transformer_with_dropout_is_run_in_pieces():
    """What chance drops is not what makes the losses of two parts differ from the whole's."""
    model = Attention(limit=SIZE // 2)
    data = torch.utils.data.TensorDataset(torch.randint(20, (64, 6)), torch.randint(20, (64,)))
    loader = AdaptiveDataLoader(
        data, SIZE, model=model, optimizer=SGD(model.parameters(), 0.1), loss_func=nn.CrossEntropyLoss(), **FIXED
    )  # fmt: skip
    for batch in loader:
        loader.step(batch)
    assert "out of memory" in loader.history.to_dict()["event"]
