"""What fastai tests of its Learner (fit, callbacks, schedules, loaders), with the callback attached and growth off.

Each check trains twice, without the callback and with it, and compares everything a Learner shows: weights, optimizer,
losses, metrics, hyperparameters of each step, and the order of events.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from fastai.basics import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    Learner,
    SkipToEpoch,
    load_learner,
    set_seed,
)
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import (
    TORCH_ADAMW,
    body_and_head,
    make_learner,
    make_tabular_learner,
    same,
    touchy_model,
    weights,
)

OURS = ("bs", "noise_scale", "samples")


def off() -> AdaptiveBatchSize:
    return AdaptiveBatchSize(max_batch_size=20, overhead=0)


def absolute_error(pred: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (pred - y).abs().mean()


class Events(Callback):
    """Every event, in order."""

    order = 200

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, event_name: str) -> None:
        self.names.append(event_name)


def learner(tmp_path: Any, **options: Any) -> Learner:
    return make_learner(model=touchy_model, splitter=body_and_head, path=tmp_path, metrics=absolute_error, **options)


def shown(learn: Learner) -> dict[str, Any]:
    """All that is to be the same."""
    recorder = learn.recorder
    names = [name for name in recorder.metric_names if name not in ("epoch", "time")]
    keep = [i for i, name in enumerate(names) if name not in OURS]
    return {
        "metrics": [[row[i] for i in keep] if len(row) == len(names) else list(row) for row in recorder.values],
        "losses": recorder.losses,
        "learning rates": recorder.lrs, "hyperparameters": dict(getattr(recorder, "hps", {})),
        "optimizer": [[str(value) for value in state.values()] for state in learn.opt.state_dict()["state"]]
        if hasattr(learn.opt, "hypers") and isinstance(learn.opt.state_dict()["state"], list) else None,
        "epoch": learn.epoch, "n_epoch": learn.n_epoch, "bs": learn.dls.train.bs,
    }  # fmt: skip


def assert_alike(do: Any, tmp_path: Any, **options: Any) -> None:
    found = []
    for attached in (False, True):
        learn, events = learner(tmp_path, **options), Events()
        set_seed(11)
        extra = [off()] if attached else []
        with learn.no_bar(), learn.no_logging():
            came = do(learn, [events, *extra])
        found.append((shown(learn), events.names, came, weights(learn)))
    (stock, stock_events, stock_came, stock_weights), (ours, events, came, our_weights) = found
    assert repr(ours) == repr(stock)  # (repr: the losses are tensors; nan is nan)
    assert events == stock_events
    assert repr(came) == repr(stock_came)
    assert same(stock_weights, our_weights)


class Cancels(Callback):
    def __init__(self, event: str, error: type[Exception], at: int) -> None:
        self.at, self.seen = at, 0
        setattr(self, event, partial(self._cancel, error))

    def _cancel(self, error: type[Exception]) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise error


FITS = {
    "fit": lambda learn, cbs: learn.fit(2, 1e-2, cbs=cbs),
    "fit, weight decay": lambda learn, cbs: learn.fit(2, 1e-2, wd=0.1, cbs=cbs),
    "one cycle": lambda learn, cbs: learn.fit_one_cycle(2, 1e-2, cbs=cbs),
    "one cycle, discriminative": lambda learn, cbs: learn.fit_one_cycle(2, slice(1e-4, 1e-2), cbs=cbs),
    "flat cos": lambda learn, cbs: learn.fit_flat_cos(2, 1e-2, cbs=cbs),
    "sgdr": lambda learn, cbs: learn.fit_sgdr(2, 1, 1e-2, cbs=cbs),
    "fine tune": lambda learn, cbs: learn.fine_tune(1, 1e-2, cbs=cbs),
    "a schedule of one's own": lambda learn, cbs: learn.fit(
        2, 1e-2, cbs=[ParamScheduler({"lr": SchedCos(1e-2, 1e-4), "wd": SchedCos(0.0, 0.1)}), *cbs]
    ),
    "start epoch": lambda learn, cbs: learn.fit(3, 1e-2, cbs=cbs, start_epoch=1),
    "skip to epoch": lambda learn, cbs: learn.fit_one_cycle(3, 1e-2, cbs=[SkipToEpoch(1), *cbs]),
    "clipped": lambda learn, cbs: learn.fit(2, 1e-2, cbs=[GradientClip(0.1), *cbs]),
    "accumulated": lambda learn, cbs: learn.fit_one_cycle(2, 1e-2, cbs=[GradientAccumulation(50), *cbs]),
    "early stopping": lambda learn, cbs: learn.fit(
        6, 0.0, cbs=[EarlyStoppingCallback("valid_loss", patience=1), *cbs]
    ),
    "plateau": lambda learn, cbs: learn.fit(4, 1e-6, cbs=[ReduceLROnPlateau("valid_loss", patience=0), *cbs]),
    "best model": lambda learn, cbs: learn.fit(3, 1e-1, cbs=[SaveModelCallback("valid_loss"), *cbs]),
}


@pytest.mark.parametrize("name", FITS)
def test_fits(name, tmp_path):
    assert_alike(FITS[name], tmp_path)


@pytest.mark.parametrize("name", ["one cycle", "fine tune"])
def test_fits_with_an_optimizer_of_torchs_and_workers(name, tmp_path):
    assert_alike(FITS[name], tmp_path, opt_func=TORCH_ADAMW, num_workers=2)


@pytest.mark.parametrize(
    ("event", "error", "at"),
    [
        ("before_batch", CancelBatchException, 3), ("after_pred", CancelBatchException, 3),
        ("after_loss", CancelBatchException, 25), ("before_backward", CancelBackwardException, 3),
        ("before_step", CancelStepException, 4), ("after_step", CancelBatchException, 4),
        ("before_batch", CancelTrainException, 5), ("after_batch", CancelEpochException, 5),
        ("before_validate", CancelValidException, 1), ("before_train", CancelEpochException, 2),
        ("after_batch", CancelFitException, 15), ("before_epoch", CancelFitException, 2),
    ],
)  # fmt: skip
def test_cancelling(event, error, at, tmp_path):
    assert_alike(lambda learn, cbs: learn.fit(3, 1e-2, cbs=[Cancels(event, error, at), *cbs]), tmp_path)


def test_freezing_saving_loading_and_predicting(tmp_path):
    def life(learn: Learner, cbs: Any) -> list[Any]:
        learn.freeze()
        learn.fit(1, 1e-2, cbs=cbs)
        learn.save("with")
        learn.save("without", with_opt=False)
        learn.unfreeze()
        learn.fit(1, 1e-2, cbs=cbs)
        middle = [learn.validate(), *learn.get_preds()]
        learn.load("with")
        learn.fit(1, 1e-2, cbs=cbs)
        learn.load("without", with_opt=False)
        learn.fit(1, 1e-2, cbs=cbs)
        return [*middle, learn.validate(ds_idx=0)]

    assert_alike(life, tmp_path)


def test_the_learning_rate_finder_finds_the_same(tmp_path):
    def find(learn: Learner, cbs: Any) -> Any:
        learn.fit(1, 1e-3, cbs=cbs)
        learn.add_cbs(cbs[1:])
        found = learn.lr_find(num_it=20, show_plot=False)
        learn.fit(1, 1e-3)
        return found

    assert_alike(find, tmp_path)


@pytest.mark.parametrize("attached", [False, True])
def test_export_and_pickle_with_the_callback_fitted(attached, tmp_path):
    learn = make_tabular_learner()
    learn.path = tmp_path
    callback = AdaptiveBatchSize()
    with learn.no_bar(), learn.no_logging():
        if attached:
            learn.add_cb(callback)
            learn.fit(1, 1e-2)
        else:
            learn.fit(1, 1e-2, cbs=callback)
    learn.export("learner.pkl")
    loaded = load_learner(tmp_path / "learner.pkl")
    again = pickle.loads(pickle.dumps(learn.model))
    *x, _ = learn.dls.valid.one_batch()
    learn.model.eval(), loaded.model.eval(), again.eval()
    assert torch.equal(learn.model(*x), loaded.model(*x)) and torch.equal(learn.model(*x), again(*x))
    assert any(isinstance(cb, AdaptiveBatchSize) for cb in loaded.cbs) == attached
