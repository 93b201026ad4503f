"""What the history knows as a doubt is on the number too, in `bs_find`, and holds the batch if the number is wrong."""

from __future__ import annotations

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, DataLoaders, Learner, MSELossFlat
from fastai.data.load import DataLoader as FastaiLoader
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find
from adaptbs.fastai import AdaptiveBatchSize

N, SIZE = 512, 16
STEP_TIME = (1e-3, 1e-6)


def regression(n: int = N) -> TensorDataset:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sum(1, keepdim=True))


def two_views(items):
    x, y = (torch.stack(parts) for parts in zip(*items, strict=True))
    return torch.cat([x, x + 0.1]), torch.cat([y, y])


def windows(items):
    """Each sample in four windows of two features."""
    x, y = (torch.stack(parts) for parts in zip(*items, strict=True))
    return x.reshape(-1, 2), y.repeat_interleave(4, 0)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def nt_xent(temperature, size):
    def loss(model, batch):
        x = batch[0]
        z = F.normalize(model(torch.cat([x, x + 0.1])), dim=1)
        n = len(z)
        return F.cross_entropy(
            (z @ z.t() / temperature).masked_fill(torch.eye(n) > 0, -1e9), torch.arange(n).roll(n // 2)
        )

    return loss


def triplet(model, batch):
    """The hardest negative of the batch."""
    z = model(batch[0])
    distances = torch.cdist(z, z + 0.1)
    return F.relu(distances.diag() - (distances + 1e6 * torch.eye(len(z))).min(1).values + 0.5).mean()


def clip(model, batch):
    a = F.normalize(model(batch[0]), dim=1)
    b = F.normalize(model(batch[0].flip(1)), dim=1)
    return F.cross_entropy(a @ b.t() / 0.1, torch.arange(len(a)))


COUPLED, VIEWS, WINDOWS = "samples are coupled", "32 rows of 16 samples", "64 rows of 16 samples"
CASES = {
    "NT-Xent at .05": (None, 8, nt_xent(0.05, SIZE), COUPLED),
    "NT-Xent at .5": (None, 8, nt_xent(0.5, SIZE), COUPLED),
    "CLIP": (None, 8, clip, COUPLED),
    "the hardest negative": (None, 8, triplet, COUPLED),
    "two views": (two_views, 8, mse, VIEWS),
    "windows": (windows, 2, mse, WINDOWS),
}


def network(features, loss):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 1 if loss is mse else 8))


def trained(collate, features, loss, source="auto"):
    model = network(features, loss)
    optimizer = Adam(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        regression(), SIZE, True, collate_fn=collate, model=model, optimizer=optimizer, batch_loss=loss, epochs=4,
        overhead=0.5, step_time=STEP_TIME, source=source,
    )  # fmt: skip
    for _ in range(4):
        for batch in loader:
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return loader


@pytest.mark.parametrize("source", ["auto", "halves"])
@pytest.mark.parametrize("case", CASES)
def test_a_number_that_is_wrong_says_so_and_holds_the_batch(case, source, caplog):
    collate, features, loss, doubt = CASES[case]
    loader = trained(collate, features, loss, source)
    decided = loader.history.decisions()
    assert loader.noise_scale.doubt == decided["doubt"][-1] is not None
    assert loader.batch_size == SIZE
    assert decided["reason"][-1] == decided["doubt"][-1] == (doubt if doubt is COUPLED else "rows are not samples")
    assert caplog.text.count("the loss couples samples" if doubt is COUPLED else doubt) == 1
    assert ("take the mean of the samples" in caplog.text) is (doubt is COUPLED)  # of a sum with a penalty beside it
    found = bs_find(network(features, loss), None, DataLoader(regression(), SIZE, collate_fn=collate), batch_loss=loss)
    assert found.doubt == doubt == found.curve[-1].doubt
    assert found.batch_size is found.useful is found.fastest is None


def test_a_doubt_is_the_same_in_a_resumed_run(caplog):
    loader = trained(*CASES["CLIP"][:3])
    state = loader.state_dict()
    other = trained(None, 8, clip)
    caplog.clear()
    other.load_state_dict(state)
    assert other.noise_scale.doubt == other.training_run.controller.holds.reason == COUPLED and not caplog.text


def test_rows_left_out_by_a_loop_now_and_then_do_not_hold_it():
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = Adam(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        regression(), SIZE, True, model=model, optimizer=optimizer, epochs=4, overhead=0.5, step_time=STEP_TIME
    )
    for _ in range(4):
        for x, y in loader:
            F.mse_loss(model(x[1:]), y[1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "rows are not samples" not in loader.history.decisions()["reason"]
    assert loader.noise_scale.doubt == f"{loader.batch_size - 1} rows of {loader.batch_size} samples"


class Later(Callback):
    """Changes the batch after it has been measured."""

    order = 90

    def before_batch(self):
        if self.training:
            self.learn.xb, self.learn.yb = (self.x * 0,), (self.y * 0,)


class LaterTargets(Callback):
    order = 70

    def before_batch(self):
        self.learn.yb = (self.y.flip(0),)


class Same(Callback):
    order = 90

    def before_batch(self):
        self.learn.xb = tuple(self.xb)


class Earlier(Later):
    order = 5


@pytest.mark.parametrize("source", ["auto", "halves"])
@pytest.mark.parametrize(("other", "later"), [(Later, True), (LaterTargets, True), (Same, False), (Earlier, False)])
def test_another_callback_that_changes_the_batch(other, later, source, caplog):
    held = later and source == "halves"
    data = list(zip(*regression().tensors, strict=True))
    dls = DataLoaders(FastaiLoader(data, bs=SIZE, shuffle=True), FastaiLoader(data[:64], bs=32))
    learn = Learner(dls, nn.Linear(8, 1), loss_func=MSELossFlat(), cbs=other())
    callback = AdaptiveBatchSize(step_time=STEP_TIME, source=source, overhead=0.3)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=callback)
    doubt = "another callback changes the batch"
    assert (callback.noise_scale.doubt == doubt) == held == (callback.history.records[-1]["doubt"] == doubt)
    assert caplog.text.count("an order below") == held
    assert not held or callback.batch_size == SIZE


def test_a_hold_of_another_kind_is_on_the_number_too():
    loader = trained(None, 8, mse)
    assert loader.noise_scale.doubt == loader.training_run.controller.doubt
    loader.training_run.controller.holds.add("optimizer is not stepped")
    assert loader.noise_scale.doubt == "optimizer is not stepped"
