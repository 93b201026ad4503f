"""What the summary of a fit says of the validation beside it, and a fit that leaves the callback out."""

from __future__ import annotations

import math
import pickle

import pytest
from fastai.basics import DataLoader
from fastai.callback.training import GradientAccumulation

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.fastai.columns import Shown
from tests.integration.fastai.learners import Rows, doubling, make_learner, same, weights

GROWING = {"target": doubling, "step_time": (1.0, 0.0), "overhead": 0.2, "decide_every": 0.1, "max_batch_size": 80}


def fitted(valid_bs: int, **arguments) -> AdaptiveBatchSize:
    learn, callback = make_learner(), AdaptiveBatchSize(**{**GROWING, **arguments})
    learn.dls.valid.bs = valid_bs
    learn.fit(4, cbs=callback)
    assert callback.batch_size == callback.training_run.settings.max_batch_size
    return callback


def test_a_validation_in_small_batches_is_noticed():
    assert repr(fitted(20).summary()).endswith(
        "Validation ran in batches of 20, in time that is not counted here. It needs no gradients, so larger\n"
        "ones fit: `learn.dls.valid.bs = 80`, or `val_bs=80` where dataloaders() makes them."
    )


@pytest.mark.parametrize("valid_bs", [21, 100, 150])
def test_a_validation_in_batches_like_the_training_ones_is_not(valid_bs):
    assert fitted(valid_bs).summary().notes == ()


def test_what_is_run_in_pieces_says_nothing_of_what_fits():
    learn, callback = make_learner(cbs=GradientAccumulation(40)), AdaptiveBatchSize(**GROWING)
    learn.dls.valid.bs = 10
    learn.fit(4, cbs=callback)
    assert callback.batch_size == 80 and callback.summary().notes == ()


def test_a_validation_of_one_batch_cannot_be_quicker():
    learn, callback = make_learner(), AdaptiveBatchSize(**GROWING)
    learn.dls.loaders[1] = DataLoader(Rows(20, seed=1), bs=20)
    learn.fit(4, cbs=callback)
    assert callback.batch_size == 80 and callback.summary().notes == ()


def test_a_fit_without_the_callback_is_a_plain_fit():
    learn, plain, callback = make_learner(), make_learner(), AdaptiveBatchSize(**GROWING)
    learn.add_cb(callback)
    with learn.removed_cbs([callback]):
        learn.fit(2)
    plain.fit(2)
    assert same(weights(learn), weights(plain)) and callback.training_run is None
    learn.fit(2)
    assert callback.batch_size == 80


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, "0.123"), (12.345, "12.3"), (65.0, "65"), (99.96, "100"), (319.4, "319"), (1234.5, "1230")],
)
def test_a_noise_scale_is_shown_short_in_the_table(value, shown):
    assert f"{Shown(value):.6f}" == shown  # as fastai formats a float
    assert str(Shown(value)) == repr(Shown(value)) == shown
    assert isinstance(Shown(value), float) and type(pickle.loads(pickle.dumps(Shown(value)))) is float


def test_a_noise_scale_that_is_not_known_is_said_to_be(capsys):
    learn = make_learner()
    with learn.no_bar():
        learn.fit(1, cbs=AdaptiveBatchSize(overhead=0))
    assert ", not known, " in capsys.readouterr().out
    assert f"{Shown(math.nan):.6f}" == "not known" and math.isnan(learn.recorder.values[-1][-2])
