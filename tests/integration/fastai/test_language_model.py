"""Language models: the layout of their batches stays, which grow by accumulation; so does their hidden state."""

from __future__ import annotations

import random

import pytest
import torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
from fastai.callback.rnn import rnn_cbs
from fastai.callback.training import GradientAccumulation
from fastai.text.data import LMDataLoader
from fastai.text.models import AWD_LSTM, get_language_model
from fastai.text.models.awdlstm import awd_lstm_lm_config

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import doubling, same, weights

BS, WORDS = 6, 12


def tokens(n: int) -> list[torch.Tensor]:
    """Documents of a language whose next word is mostly the last one's successor."""
    generator = torch.Generator().manual_seed(0)
    jump = torch.rand(n, generator=generator) < 0.2
    words = (torch.arange(n) + torch.cumsum(jump * torch.randint(1, WORDS, (n,), generator=generator), 0)) % WORDS
    return list(words.split(n // 5))


def learner(shuffle: bool = False) -> Learner:
    set_seed(3)
    text, model_config = tokens(2300), {**awd_lstm_lm_config, "emb_sz": 8, "n_hid": 10, "n_layers": 2}
    dls = DataLoaders(
        LMDataLoader(text, bs=BS, seq_len=8, shuffle=shuffle), LMDataLoader(text[:1], bs=BS, seq_len=8),
    )  # fmt: skip
    assert dls.train.last_len != 8, "the last time step is shorter"
    model = get_language_model(AWD_LSTM, WORDS, config=model_config)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=rnn_cbs(alpha=2.0, beta=1.0))
    learn.remove_cb(learn.progress)
    return learn


def inputs_of(learn: Learner) -> list[torch.Tensor]:
    """What the model is given in training, pass by pass: but for those that only look at the loss."""
    seen: list[torch.Tensor] = []

    def watch(model, args):
        if learn.model.training and torch.is_grad_enabled():
            seen.append(args[0].clone())

    learn.model.register_forward_pre_hook(watch)
    return seen


def fit(learn: Learner, *cbs, epochs: int = 2) -> None:
    set_seed(8)  # of dropout
    with learn.no_logging():
        learn.fit_one_cycle(epochs, 1e-2, cbs=list(cbs))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_constant_batch_trains_bit_for_bit_as_without_also_where_it_is_measured(shuffle):
    stock, ours = learner(shuffle), learner(shuffle)
    callback = AdaptiveBatchSize(max_batch_size=BS, overhead=0.3)
    fit(stock)
    fit(ours, callback)
    assert same(weights(stock), weights(ours))
    assert callback.history.to_dict()["event"].count("measurement") >= 4
    assert callback.noise_scale.trace > 0


def test_a_grown_batch_is_run_in_the_order_and_the_rows_of_the_stock_loader():
    stock, ours = learner(), learner()
    expected, seen = inputs_of(stock), inputs_of(ours)
    fit(stock)
    callback = AdaptiveBatchSize(target=doubling, max_batch_size=4 * BS + 1, overhead=0, budget="epochs")
    fit(ours, callback)
    assert max(callback.history.decisions()["batch_size"]) == 4 * BS, "whole pieces, within the limit"
    assert len(seen) == len(expected) and all(map(torch.equal, seen, expected))
    assert len(ours.recorder.losses) < len(stock.recorder.losses), "fewer steps"


def test_accumulated_steps_are_those_of_batches_added_up_by_hand():
    """The hidden state goes on from one to the next, the last time step is on its own, and weights are alike."""
    ours, by_hand = learner(), learner()
    for learn in (ours, by_hand):
        learn.remove_cb(learn.cbs[[type(cb).__name__ for cb in learn.cbs].index("RNNRegularizer")])
    lengths: list[int] = []
    watch = Callback(before_batch=lambda self: lengths.append(len(self.xb[0])) if self.training else None)
    set_seed(8)
    with ours.no_logging():
        callback = AdaptiveBatchSize(target=lambda noise_scale, batch_size, progress: batch_size, overhead=0)
        ours.fit(1, 1e-2, cbs=[GradientAccumulation(4 * BS), callback, watch])
    assert lengths[:3] == [4 * BS] * 3 and lengths[-1] == BS and not any(length % BS for length in lengths)

    model = by_hand.model
    optimizer = by_hand.opt_func(by_hand.splitter(model), lr=1e-2)
    set_seed(8)
    model.train()
    model.reset()
    waiting = iter(by_hand.dls.train)
    for length in lengths:
        for _ in range(length // BS):
            x, y = next(waiting)
            (by_hand.loss_func(model(x)[0], y) * BS / length).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert next(waiting, None) is None
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)  # (Adam makes much of a rounding)


def test_by_goodput_it_stays_for_larger_batches_save_no_time():
    learn = learner()
    callback = AdaptiveBatchSize(overhead=0.3, step_time=(1e-6, 1e-3))
    fit(learn, callback)
    assert callback.batch_size == BS


def test_the_finder_leaves_the_order_of_the_texts_as_it_was():
    stock, ours = learner(shuffle=True), learner(shuffle=True)
    random.seed(4)  # which shuffles the texts
    fit(stock, epochs=1)
    ours.bs_find(num_it=8, show_plot=False)
    random.seed(4)
    fit(ours, epochs=1)
    assert same(weights(stock), weights(ours))
