"""Callbacks as people write them beside AdaptiveBatchSize: they set rates, train parts in turn, make the prediction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.core import FetchPredsCallback
from fastai.callback.rnn import ModelResetter
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD, Optimizer
from fastai.text.data import LMDataLoader
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu
from torch.utils.data import TensorDataset

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.fastai.other_callbacks import IN_TURN
from adaptbs.fastai.rows import FIXED_ROWS
from adaptbs.run import RATE
from tests.integration.fastai.learners import same, weights
from tests.integration.training import FORCED, doubling

BATCH, N, LR = 16, 512, 0.01


def loaders() -> DataLoaders:
    x = torch.arange(N).float()[:, None] / N
    data = TensorDataset(x, 2 * x)
    return DataLoaders(DataLoader(data, bs=BATCH, shuffle=True, num_workers=0), DataLoader(data, bs=64, num_workers=0))


def learner(model: nn.Module | None = None, opt_func: Any = SGD) -> Learner:
    set_seed(1)
    return Learner(loaders(), model or nn.Linear(1, 1), loss_func=mse_loss, opt_func=opt_func)


def fit(learn: Learner, *callbacks: Callback, epochs: int = 4, **arguments) -> AdaptiveBatchSize:
    adaptive = AdaptiveBatchSize(**{"target": doubling(8), "lr_scaling": "linear", **FORCED} | arguments)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, LR, cbs=[adaptive, *callbacks])
    return adaptive


class StatesOfEpochs(Callback):
    """Keeps the run's state of each epoch."""

    order = AdaptiveBatchSize.order + 1

    def __init__(self, states: list[dict]) -> None:
        self.states = states

    def after_epoch(self) -> None:
        self.states.append(self.learn.adaptive_batch_size.state_dict())


class ByNumber(Callback):
    """Linear to zero over the batches that a stock fit has."""

    def before_batch(self) -> None:
        if self.training:
            self.opt.set_hyper("lr", LR * (1 - self.train_iter / (self.n_epoch * len(self.dls.train))))


class AfterTheBatch(Callback):
    """A scheduler of one's own, stepped after each batch."""

    def after_batch(self) -> None:
        if self.training:
            self.opt.set_hyper("lr", self.opt.hypers[-1]["lr"] * 0.97)


class WarmUp(Callback):
    def before_batch(self) -> None:
        if self.training and self.train_iter <= 8:
            self.opt.set_hyper("lr", LR * (self.train_iter + 1) / 9)


class OnceAnEpoch(Callback):
    def before_epoch(self) -> None:
        self.opt.set_hyper("lr", LR * 0.5**self.epoch)


@pytest.mark.parametrize("kind", [ByNumber, AfterTheBatch])
def test_a_rate_that_goes_by_batches_holds_the_batch(kind, caplog):
    stock, learn = learner(), learner()
    with stock.no_bar(), stock.no_logging():
        stock.fit(4, LR, cbs=kind())
    adaptive = fit(learn, kind())
    assert adaptive.batch_size == BATCH and adaptive.history.records[-1]["doubt"] == RATE
    assert learn.opt.hypers[0]["lr"] == stock.opt.hypers[0]["lr"] and same(weights(learn), weights(stock))
    assert len(caplog.records) == 1 and "ParamScheduler" in caplog.text


@pytest.mark.parametrize(
    "callback",
    [
        OnceAnEpoch(),
        ParamScheduler({"lr": SchedLin(LR, 0.0)}),
        ReduceLROnPlateau("valid_loss", patience=0, min_delta=1.0),
    ],
    ids=repr,
)
def test_a_rate_that_goes_by_epochs_or_by_fastais_schedule_is_no_doubt(callback, caplog):
    assert fit(learner(), callback).batch_size > BATCH and not caplog.text


def test_after_a_warm_up_by_hand_the_batch_grows(caplog):
    adaptive = fit(learner(), WarmUp())
    reasons = [record["reason"] for record in adaptive.history.records]
    assert RATE in reasons and adaptive.batch_size > BATCH and len(caplog.records) == 1


def test_where_the_batch_cannot_grow_nothing_is_said_of_rates_and_parts(caplog):
    fit(learner(pair()), ByNumber(), InTurn(), target="goodput", overhead=0)
    fit(learner(pair()), ByNumber(), InTurn(), target="goodput", max_batch_size=BATCH)
    assert not caplog.text


class Times(Callback):
    """Multiplies the rate before a batch and divides it afterwards, as fastai's GANDiscriminativeLR."""

    def __init__(self, first: int) -> None:
        self.first = first

    def before_batch(self) -> None:
        if self.training and self.train_iter >= self.first:
            self.opt.set_hyper("lr", self.opt.hypers[0]["lr"] * 5)

    def after_batch(self) -> None:
        if self.training and self.train_iter > self.first:
            self.opt.set_hyper("lr", self.opt.hypers[0]["lr"] / 5)


def test_a_rate_that_is_multiplied_and_divided_again_stays_also_where_the_batch_has_grown():
    learn = learner()
    adaptive = fit(learn, Times(first=10))
    assert adaptive.batch_size > BATCH and learn.opt.hypers[0]["lr"] == pytest.approx(LR)


class SetsLate(Callback):
    """Sets once, after a step, what the steps from there on are to have."""

    def after_batch(self) -> None:
        if self.training and self.train_iter == 12:
            self.opt.set_hyper("wd", 0.25)
            self.opt.set_hyper("lr", 0.2 * self.opt.hypers[0]["lr"])


def test_what_a_callback_sets_after_a_larger_step_is_kept():
    learn = learner()
    adaptive = fit(learn, SetsLate())
    assert adaptive.batch_size > BATCH and learn.opt.hypers[0]["wd"] == 0.25
    assert learn.opt.hypers[0]["lr"] == pytest.approx(0.2 * LR)


def pair() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))


class InTurn(Callback):
    """One part is frozen while the other is trained, batch by batch, as a GAN's are."""

    def before_batch(self) -> None:
        if self.training:
            self.model[0].requires_grad_(self.train_iter % 2 == 0)
            self.model[2].requires_grad_(self.train_iter % 2 == 1)


class Unfreezes(Callback):
    """A part is frozen in the first epoch, and then trained too."""

    def before_epoch(self) -> None:
        self.model[0].requires_grad_(self.epoch > 0)


def test_parts_that_are_trained_in_turn_hold_the_batch(caplog):
    adaptive = fit(learner(pair()), InTurn())
    assert adaptive.batch_size == BATCH and adaptive.history.records[-1]["doubt"] == IN_TURN
    assert len(caplog.records) == 1 and "GAN" in caplog.text
    caplog.clear()
    assert fit(learner(pair()), Unfreezes()).batch_size > BATCH and not caplog.text


class Remembers(nn.Module):
    """Goes on in the next batch where it left off, row by row, as the book's language model from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.state: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for i in range(x.shape[1]):
            self.state = relu(self.hidden(self.state + self.words(x[:, i])))
            outs.append(self.out(self.state))
        self.state = self.state.detach()
        return torch.stack(outs, dim=1)

    def reset(self) -> None:
        self.state = 0.0


class Resets(Remembers):
    """Is reset within each batch, as the encoder of a text classifier."""

    def forward(self, x: Tensor) -> Tensor:
        self.reset()
        return super().forward(x)


def text(kind: Callable[[], nn.Module], *callbacks: Callback) -> Learner:
    set_seed(1)
    x = torch.arange(N * 4).view(N, 4) % 12
    data = TensorDataset(x, (x + 1) % 12)
    options = {"bs": BATCH, "num_workers": 0, "drop_last": True}
    return Learner(
        DataLoaders(DataLoader(data, **options), DataLoader(data, **options)),
        kind(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=[ModelResetter(), *callbacks],
    )  # fmt: skip


def test_a_model_with_a_state_of_so_many_rows_holds_the_batch(caplog):
    stock, learn = text(Remembers), text(Remembers)
    with stock.no_bar(), stock.no_logging():
        stock.fit(4, LR)
    adaptive = fit(learn)
    assert adaptive.batch_size == BATCH and adaptive.history.records[-1]["doubt"] == FIXED_ROWS
    assert same(weights(learn), weights(stock))
    assert len(caplog.records) == 1 and "LMDataLoader" in caplog.text


def test_a_resumed_run_without_that_state_is_held_no_longer():
    states, learn = [], text(type("SentenceEncoder", (Resets,), {}))  # fastai's, by its name
    fit(text(Remembers), StatesOfEpochs(states))
    resumed = AdaptiveBatchSize(target=doubling(8), lr_scaling="linear", **FORCED)
    resumed.load_state_dict(states[0])
    with learn.no_bar(), learn.no_logging():
        learn.fit(4, LR, cbs=resumed, start_epoch=1)
    assert resumed.batch_size > BATCH


def test_a_model_that_resets_itself_within_a_batch_grows(caplog):
    encoder = type("SentenceEncoder", (Resets,), {})  # fastai's, by its name
    assert fit(text(encoder)).batch_size > BATCH and not caplog.text


class WithMore(Remembers):
    """Says more than the loss takes, as Hugging Face's models."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.state = 0.0
        prediction = super().forward(x)
        return prediction, prediction


class DropOutput(Callback):
    def after_pred(self) -> None:
        self.learn.pred = self.pred[0]


def test_a_callback_that_makes_the_prediction_also_works_where_the_batch_is_run_in_pieces(caplog):
    """A language model's larger batch is run so, and each piece has a share of the loss."""
    set_seed(1)
    words = [torch.arange(2001) % 12]
    dls = DataLoaders(*[LMDataLoader(words, bs=BATCH, seq_len=4, num_workers=0) for _ in range(2)])
    learn = Learner(dls, WithMore(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=DropOutput())
    assert fit(learn).batch_size > BATCH and not caplog.text


class Noise(Callback):
    """Makes another batch, as a list, as some that mix samples do; and sets the target again after the prediction."""

    def __init__(self) -> None:
        self.kept: list[bool] = []

    def before_batch(self) -> None:
        if self.training:
            self.learn.xb = [x + 0.01 for x in self.xb]

    def after_pred(self) -> None:
        if self.training:
            self.mine = self.learn.yb = [y.clone() for y in self.yb]

    def after_batch(self) -> None:
        if self.training:
            self.kept.append(self.learn.yb is self.mine and type(self.learn.xb) is list)


@pytest.mark.parametrize("arguments", [{}, {"target": "goodput", "overhead": 0}], ids=["grows", "off"])
def test_a_batch_that_a_callback_has_made_a_list_of(arguments, caplog):
    noise, learn = Noise(), learner()
    adaptive = fit(learn, noise, **arguments)
    assert (adaptive.batch_size > BATCH) == (not arguments) and all(noise.kept) and not caplog.text
    if arguments:
        stock = learner()
        with stock.no_bar(), stock.no_logging():
            stock.fit(4, LR, cbs=Noise())
        assert same(weights(learn), weights(stock))


def test_predictions_that_are_fetched_in_each_epoch(caplog):
    """For which fastai takes the Recorder away."""
    fetch, learn = FetchPredsCallback(), learner()
    assert fit(learn, fetch).batch_size > BATCH and not caplog.text
    assert len(fetch.preds[0]) == N and len(learn.recorder.values) == 4 and len(learn.recorder.values[-1]) == 5


def plain_step(p: Tensor, lr: float, **_: object) -> None:
    p.data.add_(p.grad.data, alpha=-lr)


def test_an_optimizer_of_ones_own_is_told_of_only_where_the_batch_may_grow(caplog):
    own = partial(Optimizer, cbs=[plain_step])
    for arguments in ({"overhead": 0}, {"max_batch_size": BATCH}):
        fit(learner(opt_func=own), target="goodput", lr_scaling="auto", **arguments)
        assert not caplog.text
    assert fit(learner(opt_func=own), lr_scaling="auto").batch_size == BATCH and "transfer=" in caplog.text


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(self.norm(x)), x


def test_such_a_callback_also_works_where_the_model_is_measured_by_halves(caplog):
    """The loss takes no tuple, so the callback is asked in that pass, too."""
    learn = learner(TwoOutputs())
    learn.add_cb(DropOutput())
    adaptive = fit(learn, overhead=0.2)
    assert adaptive.noise_scale.measurements > 2 and adaptive.batch_size > BATCH and not caplog.text
