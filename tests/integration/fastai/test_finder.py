"""`learn.bs_find()`: finds what is there, and leaves no trace."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastai.basics import Adam, Callback, Learner, TensorCategory, TensorImage
from torch import Tensor, nn
from torch.utils.data import DataLoader as TorchLoader

import adaptbs.fastai  # noqa: F401 (it adds Learner.bs_find)
from adaptbs import BatchSizeSuggestion
from adaptbs.fastai.finder import _optimizer_copy
from tests.integration.fastai.learners import (
    TORCH_ADAMW,
    Augmented,
    Rows,
    body_and_head,
    loss_func,
    make_learner,
    make_tabular_learner,
    random_states,
    same,
    touchy_model,
    weights,
)


def plain(value: Any) -> Any:
    """Nested containers of tensors as something that == compares."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) or hasattr(value, "items") else value


def everything(learn: Learner) -> dict[str, Any]:
    """All that bs_find could leave a trace in."""
    return {
        "weights and buffers": plain(weights(learn)),
        "gradients": [plain(p.grad) for p in learn.model.parameters()],
        "trainable": [p.requires_grad for p in learn.model.parameters()],
        "modes": [module.training for module in learn.model.modules()],
        "optimizer": None if learn.opt is None else plain(learn.opt.state_dict()),
        "learning rates": None if learn.opt is None else [hyper["lr"] for hyper in learn.opt.hypers],
        "random states": random_states(),
        "loader's random state": learn.dls.train.rng.getstate() if hasattr(learn.dls.train, "rng") else None,
        "loader's attributes": set(vars(learn.dls.train)),
        "learner's attributes": set(vars(learn)),
        "files": sorted(Path(learn.path).rglob("*")),
    }


@pytest.mark.parametrize("opt_func", [Adam, TORCH_ADAMW], ids=["Adam", "OptimWrapper"])
@pytest.mark.parametrize("lr", [None, 1e-2])
@pytest.mark.parametrize("state", ["new", "fitted", "frozen"])
def test_leaves_no_trace(state: str, lr: float | None, opt_func: Any, tmp_path: Path) -> None:
    options = {"splitter": body_and_head, "path": tmp_path, "rows": Augmented}
    learn = make_learner(model=touchy_model, opt_func=opt_func, **options)
    if state != "new":
        learn.fit(1)
        learn.model[0].eval()
    if state == "frozen":
        learn.freeze()
    before = everything(learn)
    found = learn.bs_find(lr=lr, num_it=9, n_batch=3, show_plot=False)
    assert isinstance(found, BatchSizeSuggestion)
    assert found.samples == (60, 120, 180)
    assert everything(learn) == before


@pytest.mark.parametrize("lr", [None, 1e-2])
def test_leaves_no_trace_of_a_torch_loader(lr: float | None, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    learn = make_learner(
        train=lambda: TorchLoader(Rows(203), batch_size=20, shuffle=True, generator=generator), path=tmp_path
    )
    before = everything(learn), generator.get_state().tolist()
    learn.bs_find(lr=lr, n_batch=3, show_plot=False)
    assert (everything(learn), generator.get_state().tolist()) == before


@pytest.mark.parametrize("calls", [2, 8, 14])
def test_leaves_no_trace_after_an_interrupt(calls: int, tmp_path: Path) -> None:
    left = calls

    def interrupted(pred: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return loss_func(pred, y)

    learn = make_learner(model=touchy_model, path=tmp_path)
    learn.fit(1)
    before = everything(learn)
    learn.loss_func = interrupted
    with pytest.raises(KeyboardInterrupt):
        learn.bs_find(lr=0.1, n_batch=3)
    assert everything(learn) == before


@pytest.mark.parametrize("make", [make_learner, make_tabular_learner])
def test_a_fit_afterwards_is_the_fit_it_would_have_been(make: Any) -> None:
    stock = make()
    stock.fit_one_cycle(2, 1e-2)
    ours = make()
    ours.bs_find(lr=1e-2, n_batch=4, show_plot=False)
    ours.fit_one_cycle(2, 1e-2)
    assert same(weights(stock), weights(ours))
    assert stock.recorder.losses == ours.recorder.losses


def test_it_finds_the_noise_scale_of_a_linear_model() -> None:
    """There, every example's gradient of (x w - y)^2 is 2 (x w - y) x, in closed form."""
    learn = make_learner(n=4000, noise=2.0, model=lambda: nn.Sequential(nn.Linear(6, 1, bias=False)))
    with torch.no_grad():
        learn.model[0].weight.fill_(0.5)
    rows = Rows(4000, 2.0)
    gradients = (2 * (0.5 * rows.x.sum(1, keepdim=True) - rows.y) * rows.x).double().numpy()
    exact = gradients.var(axis=0).sum() / np.square(gradients.mean(axis=0)).sum()

    found = learn.bs_find(show_plot=False)
    assert found.low < exact < found.high < math.inf
    assert found.noise_scale == pytest.approx(exact, rel=0.15)
    assert found.low < found.noise_scale < found.high
    assert found.batch_size is not None and found.batch_size & (found.batch_size - 1) == 0


def test_with_an_lr_the_weights_move_on_meanwhile() -> None:
    learn = make_learner(n=2000, noise=0.5)
    still, moving = (learn.bs_find(lr=lr, beta=0, show_plot=False) for lr in (None, 1e-2))
    assert moving.curve[0] == still.curve[0]
    assert moving.curve[-1].grad_sq < 0.1 * still.curve[-1].grad_sq
    assert moving.curve[-1].trace < 0.5 * still.curve[-1].trace


def test_it_draws_a_figure_if_asked() -> None:
    import matplotlib.pyplot as plt

    learn = make_learner()
    before = plt.get_fignums()
    learn.bs_find(n_batch=3, show_plot=False)
    assert plt.get_fignums() == before
    learn.bs_find(n_batch=3)
    assert len(plt.get_fignums()) == len(before) + 1
    plt.close("all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"n_batch": 1}, "n_batch=1"), ({"num_it": 0}, "num_it=0"), ({"beta": 2}, "beta=2"), ({"num_it": 1}, "num_it")],
)
def test_wrong_arguments_are_named_and_change_nothing(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    learn = make_learner(path=tmp_path)
    before = everything(learn)
    with pytest.raises(ValueError, match=message):
        learn.bs_find(lr=1e-2, **arguments)
    assert everything(learn) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": "1e-3"}, "lr='1e-3'"), ({"lr": -1.0}, "lr=-1.0"), ({"lr": slice(1e-4, "a")}, "lr='a'"),
        ({"suggest_funcs": "valley"}, "suggest_funcs='v'"), ({"suggest_funcs": [None]}, "suggest_funcs=None"),
    ],
)  # fmt: skip
def test_they_are_named_before_anything_is_measured(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    learn = make_learner(path=tmp_path, model=Untouchable)
    with pytest.raises((TypeError, ValueError), match=message):
        learn.bs_find(**arguments)


class Untouchable(nn.Linear):
    """A model that must not be called."""

    def __init__(self) -> None:
        super().__init__(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("it was measured")


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("opt_func", [Adam, TORCH_ADAMW], ids=["Adam", "OptimWrapper"])
def test_a_slice_gives_each_group_its_rate(opt_func: Any, fitted: bool) -> None:
    """As in a fit: the last group has the largest."""
    learn = make_learner(opt_func=opt_func, splitter=body_and_head)
    if fitted:
        learn.fit(1)
    copied = _optimizer_copy(learn, slice(1e-4, 1e-2))
    groups = copied.param_groups if isinstance(copied, torch.optim.Optimizer) else copied.hypers
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-2])
    assert learn.bs_find(lr=slice(1e-4, 1e-2), show_plot=False).curve


def test_the_picture_can_be_drawn_again() -> None:
    learn = make_learner()
    with pytest.raises(RuntimeError, match="bs_find"):
        learn.recorder.plot_bs_find()
    found = learn.bs_find(show_plot=False)
    assert learn.recorder.bs_found is found
    assert len(learn.recorder.plot_bs_find().axes) == len(found.plot().axes)


def test_a_bar_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    learn = make_learner(progress=True)
    learn.bs_find(num_it=8, n_batch=4, show_plot=False)
    assert "/8 " in capsys.readouterr().out
    with learn.no_bar():
        learn.bs_find(num_it=8, n_batch=4, show_plot=False)
    assert "/8 " not in capsys.readouterr().out


class Pictures(Rows):
    """Items of fastai's own types, of which a Learner's CastToTensor makes plain tensors."""

    def __getitem__(self, i: int) -> Any:
        return TensorImage(self.x[i]), TensorCategory(int(self.y[i] > 0))


def test_items_of_fastais_types_and_a_loss_of_torchs() -> None:
    """As in the book, whose convolutions are trained with F.cross_entropy."""
    learn = make_learner(model=partial(nn.Linear, 6, 2), rows=Pictures, loss_func=nn.functional.cross_entropy)
    assert learn.bs_find(show_plot=False, lr=1e-2).curve


def test_a_part_that_was_frozen_after_the_optimizer_was_made() -> None:
    """As a GAN's critic is, in turn."""
    learn = make_learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    learn.model[0].requires_grad_(False)
    assert learn.bs_find(show_plot=False, lr=1e-2).curve


class Two(nn.Linear):
    """Returns more than the loss takes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class DropOutput(Callback):
    """As in fastai's tutorial on transformers. Also keeps a number, which is no affair of the finder's."""

    seen = 0

    def after_pred(self) -> None:
        self.learn.pred, self.seen = self.pred[0], self.seen + 1


def test_a_prediction_that_a_callback_makes_is_made_so_here_too() -> None:
    drop = DropOutput()
    learn = make_learner(model=partial(Two, 6, 1), cbs=drop)
    stock = make_learner(model=partial(nn.Linear, 6, 1))
    found, expected = learn.bs_find(show_plot=False), stock.bs_find(show_plot=False)
    assert found.curve[-1].trace == expected.curve[-1].trace
    assert drop.seen == 0 and drop.learn is learn


def test_a_loss_that_does_not_take_what_the_model_returns_says_what_it_was_called_on() -> None:
    learn = make_learner(model=partial(Two, 6, 1))
    with pytest.raises(AttributeError) as raised:
        learn.bs_find(show_plot=False)
    assert "without what the Learner's callbacks change" in "".join(raised.value.__notes__)
