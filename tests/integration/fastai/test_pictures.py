"""What people look at: pictures of a Learner's Recorder, the live graph, and what is logged to others."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import matplotlib
import pytest
from fastai.basics import Callback, Learner
from fastai.callback.progress import ShowGraphCallback

from adaptbs.fastai import AdaptiveBatchSize, ShowBatchSizeCallback
from tests.integration.fastai.learners import doubling, make_learner

matplotlib.use("Agg")


def fitted(*cbs, **arguments) -> Learner:
    learn = make_learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-2, cbs=[AdaptiveBatchSize(target=doubling, max_batch_size=64, **arguments), *cbs])
    return learn


def test_the_schedule_can_be_drawn_against_samples():
    recorder = fitted(budget="epochs").recorder
    figure = recorder.plot_sched_by_samples()
    (lr,) = figure.axes[0].lines
    assert figure.axes[0].get_ylabel() == "lr" and len(figure.axes) == len(recorder.hps)
    seen, used = lr.get_data()
    assert list(used) == recorder.hps["lr"]
    steps = [b - a for a, b in pairwise(seen)]
    assert max(steps) > min(steps) > 0, "the batch has grown"
    for keys in ("mom", ["mom"]):
        assert [axes.get_ylabel() for axes in recorder.plot_sched_by_samples(keys).axes] == ["mom"]
    with pytest.raises(ValueError, match=r"keys: typo was not scheduled\. Give names among lr"):
        recorder.plot_sched_by_samples(["typo"])


def test_what_was_not_recorded_cannot_be_drawn():
    with pytest.raises(RuntimeError, match="fit with a schedule"):
        make_learner().recorder.plot_sched_by_samples()


def interrupted(learn: Learner) -> None:
    class Interrupts(Callback):
        def after_batch(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(1, cbs=[AdaptiveBatchSize(), Interrupts()])


@pytest.mark.parametrize(
    "then",
    [
        lambda learn: learn.fit(2, 1e-2, cbs=AdaptiveBatchSize(max_batch_size=20)),
        lambda learn: learn.fit_one_cycle(1, 1e-2),
        interrupted,
    ],
    ids=["no schedule", "no callback", "interrupted"],
)
def test_the_schedule_of_one_fit_is_not_drawn_against_the_samples_of_another(then):
    learn = fitted(budget="epochs")
    learn.model.samples = [1]  # which is not the Recorder's
    with learn.no_bar(), learn.no_logging():
        then(learn)
    with pytest.raises(RuntimeError, match="It shows the latest fit"):
        learn.recorder.plot_sched_by_samples()


@pytest.fixture
def notebook(monkeypatch) -> list:
    """What stands in for IPython, which only notebooks need: what was shown, and the updates of each."""
    shown: list = []

    def display(figure, display_id):
        updates: list = []
        shown.append((figure, updates))
        return SimpleNamespace(update=updates.append)

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    return shown


def test_the_live_graph_is_drawn_once_and_then_redrawn(notebook):
    learn = fitted(ShowBatchSizeCallback(), budget="epochs")
    ((figure, updates),) = notebook
    assert len(updates) == 1, "two epochs"
    assert figure.axes[0].get_title(loc="left") == "Noise scale and batch size"
    assert not any(isinstance(cb, ShowBatchSizeCallback) for cb in learn.cbs)


def test_the_live_graph_stands_beside_fastais(notebook):
    learn = make_learner(progress=True)
    with learn.no_logging():
        learn.fit_one_cycle(1, 1e-2, cbs=[AdaptiveBatchSize(), ShowGraphCallback(), ShowBatchSizeCallback()])
    assert len(notebook) == 1


def test_where_there_is_no_notebook_the_live_graph_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    learn = make_learner()
    with learn.no_bar(), pytest.raises(ImportError, match="no IPython: leave it out"):
        learn.fit(1, cbs=[AdaptiveBatchSize(), ShowBatchSizeCallback()])


def test_a_live_graph_of_nothing_says_so():
    learn = make_learner()
    with learn.no_bar(), pytest.raises(ValueError, match="AdaptiveBatchSize"):
        learn.fit(1, cbs=ShowBatchSizeCallback())


def test_suggestions_of_ones_own_are_in_picture_and_tuple():
    learn = make_learner()

    def article(found):
        return found.low

    found = learn.bs_find(num_it=8, n_batch=2, show_plot=False, suggest_funcs=article)
    assert found.suggestions.article == found.low
    assert learn.recorder.plot_bs_find().axes
    assert learn.recorder.bs_found.suggestions == found.suggestions


def test_larger_batches_are_of_use_to_adam():
    from fastai.basics import SGD, Adam

    useful = []
    for opt_func in (SGD, Adam):
        learn = make_learner(opt_func=opt_func)
        useful.append(learn.bs_find(num_it=24, n_batch=4, show_plot=False).critical_over_simple)
    assert useful[0] < useful[1]


def test_wandb_is_logged_the_columns(monkeypatch):
    logged = {}
    wandb = ModuleType("wandb")
    wandb.run = SimpleNamespace(step=0, summary={})
    wandb.log = lambda values, step=None: logged.update(values)
    wandb.config = SimpleNamespace(update=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delitem(sys.modules, "fastai.callback.wandb", raising=False)
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setattr(Learner, "gather_args", lambda self: {})  # (fails on plain Learners too, with this fastcore)
    fitted(WandbCallback(log=None, log_preds=False))
    assert logged["bs"] > 16 and "noise_scale" in logged and "lr_0" in logged


def test_tensorboard_is_logged_the_columns(monkeypatch, tmp_path):
    logged, batches = {}, []

    class SummaryWriter:
        def __init__(self, log_dir):
            pass

        def add_scalar(self, name, value, step):
            logged[name] = value
            batches.append(step)

        def close(self):
            batches.append("closed")

    tensorboard = ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.delitem(sys.modules, "fastai.callback.tensorboard", raising=False)
    from fastai.callback.tensorboard import TensorBoardCallback

    fitted(TensorBoardCallback(log_dir=tmp_path, trace_model=False, log_preds=False), budget="epochs")
    assert logged["bs"] > 16 and "noise_scale" in logged and "valid_loss" in logged
    assert batches[-1] == "closed"
