"""Gradients that are accumulated over several batches in a loop that has not said so by `accumulation_steps=`."""

from __future__ import annotations

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import make_learner
from tests.integration.training import Numbered

N, BATCH = 400, 16  # samples: 25 batches
HELD = "gradients are accumulated unsaid"
SAID = "Give accumulation_steps=4"


class Run:
    def __init__(self, to_none: bool = True, **given) -> None:
        self._to_none = to_none
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = SGD(self.model.parameters(), 0.01)
        arguments = {"epochs": 6, "overhead": 0.5, "step_time": (1e-3, 1e-5), "decide_every": 0.02}
        grows = {"target": lambda noise, size, progress: int(size * (1 + 0.1 * (progress > 0.4))), "max_batch_size": 64}
        arguments |= grows | given
        self.loader = AdaptiveDataLoader(
            Numbered(N), BATCH, shuffle=True, model=self.model, optimizer=self.optimizer, **arguments
        )

    def loss(self, batch):
        x, y, _ = batch
        return nn.functional.mse_loss(self.model(x), y)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._to_none)

    @property
    def reason(self) -> str:
        return self.loader.history.records[-1]["reason"]


def by_the_number(run: Run) -> None:
    for i, batch in enumerate(run.loader):
        (run.loss(batch) / 4).backward()
        if (i + 1) % 4 == 0 or i + 1 == len(run.loader):
            run.step()


def after_a_warm_up(run: Run) -> None:
    """As YOLO's trainers: one batch a step at first, then so many that they make 64."""
    waiting = 0
    for batch in run.loader:
        run.loss(batch).backward()
        waiting += 1
        if waiting >= min(1 + run.step_number // 6, 4):
            run.step()
            waiting, run.step_number = 0, run.step_number + 1


def losses_added_up(run: Run) -> None:
    losses = []
    for batch in run.loader:
        losses.append(run.loss(batch) / 4)
        if len(losses) == 4:
            sum(losses).backward()
            run.step()
            losses = []


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("loop", [by_the_number, after_a_warm_up])
def test_the_batch_is_held_with_a_warning_that_says_what_to_give(loop, to_none, caplog):
    run = Run(to_none)
    run.step_number = 0
    for _ in range(6):
        loop(run)
    # A step's last batch alone looks like a step, whose gradients had not been zeroed.
    told = [r.getMessage() for r in caplog.records if to_none or "never zeroed" not in r.getMessage()]
    assert len(told) == 1 and "Give accumulation_steps=" in told[0]
    assert SAID in told[0] or loop is after_a_warm_up  # which may show by fewer
    assert run.reason == HELD == run.loader.noise_scale.doubt
    assert run.loader.batch_size == BATCH


def test_told_of_it_the_batch_grows(caplog):
    run = Run(accumulation_steps=4)
    for _ in range(6):
        by_the_number(run)
    assert run.loader.batch_size >= 32 and not caplog.records


@pytest.mark.parametrize("told", [{}, {"accumulation_steps": 4}])
def test_losses_that_are_added_up_are_not_told_apart_by_their_samples(told, caplog):
    """One backward pass over four calls of a layer looks like a layer that is called four times on the same samples."""
    run = Run(**told)
    for _ in range(6):
        losses_added_up(run)
    assert caplog.text.count("call backward() on each instead") == 1 == len(caplog.records)
    assert run.reason == "rows are not samples" and run.loader.batch_size == BATCH


def left_out(run: Run, i: int, batch) -> None:
    """Every other batch is not trained on."""
    if i % 2:
        run.loss(batch).backward()
        run.step()


def not_finite(run: Run, i: int, batch) -> None:
    """The forward pass of every third batch is made, and no backward pass."""
    loss = run.loss(batch)
    if i % 3:
        loss.backward()
        run.step()


def dropped(run: Run, i: int, batch) -> None:
    """Every other batch's gradients are thrown away, as after a loss that is not finite."""
    run.loss(batch).backward()
    if i % 2:
        run.optimizer.step()
    run.optimizer.zero_grad()


def several_steps(run: Run, i: int, batch) -> None:
    for _ in range(3):
        run.loss(batch).backward()
        run.step()


@pytest.mark.parametrize("body", [left_out, not_finite, dropped, several_steps])
def test_loops_that_make_a_step_of_one_batch_are_no_doubt(body, caplog):
    run = Run()
    for _ in range(6):
        for i, batch in enumerate(run.loader):
            body(run, i, batch)
    assert SAID.split("=")[0] not in caplog.text and run.reason != HELD and run.loader.batch_size >= 32


class Own(Callback):
    """As tutorials write it: the step and what comes after it are left out for three batches of four."""

    def after_backward(self):
        if (self.iter + 1) % 4:
            raise CancelBatchException


class OwnBySamples(Callback):
    """As fastai's own, under another name."""

    def before_fit(self):
        self.samples = 0

    def after_backward(self):
        self.samples += len(self.yb[0])
        if self.samples < 4 * BATCH:
            raise CancelBatchException
        self.samples = 0


@pytest.mark.parametrize("accumulates", [Own, OwnBySamples])
def test_a_learners_own_callback(accumulates, caplog):
    learn, ours = make_learner(BATCH, N), AdaptiveBatchSize(overhead=0.5, step_time=(1e-3, 1e-5))
    learn.fit(6, 1e-2, cbs=[ours, accumulates()])
    assert SAID in caplog.text and "GradientAccumulation" in caplog.text and len(caplog.records) == 1
    assert ours.batch_size == BATCH and ours.history.records[-1]["reason"] == HELD
