"""A Learner that is pickled, copied or summed up after a fit."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import fastai.callback.schedule  # noqa: F401, which gives a Learner `fit_one_cycle`
import pytest
import torch
from fastai.basics import Callback, Learner, set_seed

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import TORCH_ADAMW, doubling, make_learner, same, touchy_model, weights

GROWS = {"target": doubling, "step_time": (1.0, 0.01)}
OFF = {"max_batch_size": 20, "overhead": 0}


def fitted(callback: AdaptiveBatchSize, **options: Any) -> Learner:
    learn = make_learner(model=touchy_model, **options)
    learn.add_cb(callback)
    fit(learn)
    return learn


def fit(learn: Learner) -> None:
    set_seed(5)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)


def through_pickle(found: Any) -> Any:
    return pickle.loads(pickle.dumps(found))


def through_a_file(found: Any) -> Any:
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, through_pickle, through_a_file])
@pytest.mark.parametrize("arguments", [OFF, GROWS], ids=["off", "grows"])
def test_a_learner_that_was_fitted_can_be_copied_and_the_copy_trains_on_alike(again, arguments):
    learn = fitted(AdaptiveBatchSize(**arguments))
    copied = again(learn)
    assert same(weights(copied), weights(learn))
    fit(learn)
    fit(copied)
    assert same(weights(copied), weights(learn))
    assert copied.adaptive_batch_size.batch_size == learn.adaptive_batch_size.batch_size


@pytest.mark.parametrize("options", [{}, {"opt_func": TORCH_ADAMW}], ids=["fastai's", "torch's"])
def test_so_can_its_optimizer(options):
    learn = fitted(AdaptiveBatchSize(**GROWS), **options)
    for copied in (copy.deepcopy(learn.opt), through_pickle(learn.opt)):
        assert [dict(group)["lr"] for group in copied.hypers] == [dict(group)["lr"] for group in learn.opt.hypers]


def test_a_callback_that_is_pickled_keeps_its_arguments_alone():
    callback = AdaptiveBatchSize(max_batch_size=80, **GROWS)
    learn = fitted(callback)
    learn.remove_cb(callback)
    loaded = through_pickle(callback)
    assert callback.batch_size == 80 and loaded.batch_size is None and "no run yet" in repr(loaded)
    learn.add_cb(loaded)
    fit(learn)
    assert loaded.batch_size == 80


@pytest.mark.parametrize("enter", [lambda learn: learn.summary(), lambda learn: learn.__enter__().__exit__(0, 0, 0)])
def test_what_enters_a_learner_without_a_fit_begins_no_run(enter):
    """As `learn.summary()` does, which calls before_fit."""
    import fastai.callback.hook  # noqa: F401, which gives a Learner `summary`

    callback = AdaptiveBatchSize(**GROWS)
    learn = fitted(callback)
    records = len(callback.history)
    enter(learn)
    assert len(callback.history) == records > 2 and callback.batch_size > 20


class Interrupt(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def after_batch(self) -> None:
        if self.train_iter == 3:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong")], ids=["Ctrl-C", "an error"])
def test_so_can_a_learner_whose_fit_was_interrupted(error):
    """Its `dl` had stayed ours, and the run in it, which cannot be pickled."""
    learn = make_learner(model=touchy_model)
    learn.add_cb(AdaptiveBatchSize(**GROWS))
    with pytest.raises(type(error)), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=Interrupt(error))
    assert learn.dl is learn.dls.train
    assert same(weights(through_pickle(learn)), weights(learn))
