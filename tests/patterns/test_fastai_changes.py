"""What is replaced in the middle of a Learner's fit: its loaders, its optimizer. The fit goes on with the new one."""

from __future__ import annotations

import gc
import weakref

import fastai.callback.progress  # noqa: F401, which gives a Learner `no_bar`
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelStepException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD, Optimizer
from fastai.torch_core import set_seed
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import TensorDataset

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run.holds import UNMEASURED
from adaptbs.run.passed_over import PASSED
from tests.integration.training import FORCED, doubling

BATCH = 16


def loaders(n: int) -> DataLoaders:
    x = torch.arange(n).float()[:, None] / n
    data = TensorDataset(x, 2 * x)
    return DataLoaders(DataLoader(data, bs=BATCH, shuffle=True, num_workers=0), DataLoader(data, bs=64, num_workers=0))


class Watch(Callback):
    """Notes each step's epoch, learning rate and samples."""

    order = 80

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, list[float]]] = []

    def before_step(self) -> None:
        self.steps.append((self.epoch, self.opt.hypers[-1]["lr"], self.xb[0].flatten().tolist()))

    def samples(self, epoch: int) -> list[float]:
        return [x for e, _, xs in self.steps if e == epoch for x in xs]


def fit(*callbacks: Callback, n: int = 512, epochs: int = 3, **arguments) -> tuple[AdaptiveBatchSize, Watch, Learner]:
    arguments = {"target": doubling(8), "lr_scaling": "linear", **FORCED} | arguments
    adaptive, watch = AdaptiveBatchSize(**arguments), Watch()
    learn = Learner(loaders(n), nn.Linear(1, 1), loss_func=mse_loss, opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 0.01, cbs=[adaptive, watch, *callbacks])
    assert adaptive.batch_size > BATCH
    return adaptive, watch, learn


class NewLoaders(Callback):
    """As progressive resizing and curricula in a callback."""

    def __init__(self, n: int) -> None:
        self.n = n

    def before_epoch(self) -> None:
        if self.epoch == 1:
            self.learn.dls = loaders(self.n)


@pytest.mark.parametrize("budget", ["progress", "epochs"])
@pytest.mark.parametrize("n", [256, 1024, 1000])
def test_loaders_of_another_length_are_gone_over_as_a_whole(n, budget, caplog):
    _, watch, learn = fit(NewLoaders(n), budget=budget)
    for epoch in (1, 2):
        seen = watch.samples(epoch)
        assert len(seen) == n and len(set(seen)) == n
    assert caplog.text.count(f"one of {n} samples, where 512 were planned") == 1 and len(caplog.records) == 1
    assert {epoch for epoch, *_ in watch.steps} == {0, 1, 2}
    assert learn.pct_train == pytest.approx(1)


def test_loaders_of_the_same_length_need_no_word(caplog):
    _, watch, _ = fit(NewLoaders(512), budget="epochs")
    assert len(set(watch.samples(2))) == 512 and not caplog.text


def test_a_loader_that_cannot_grow_is_refused_by_name():
    class Other(Callback):
        def before_epoch(self) -> None:
            if self.epoch == 1:
                self.learn.dls.loaders[0] = TorchLoader(self.dls.train.dataset, BATCH)

    with pytest.raises(TypeError, match="not a fastai DataLoader"):
        fit(Other())


class NewOptimizer(Callback):
    """As after unfreezing."""

    def before_epoch(self) -> None:
        if self.epoch == 1:
            self.learn.create_opt()
            self.opt.set_hyper("lr", 0.001)


def test_the_hyperparameters_of_a_new_optimizer_follow_the_batch(caplog):
    callback, watch, learn = fit(NewOptimizer())
    for epoch, lr, samples in watch.steps:
        k = lr / (0.01 if epoch == 0 else 0.001)
        assert k == pytest.approx(round(k)) and round(k) >= len(samples) / BATCH  # a short one keeps its step
    assert watch.steps[-1][1] == pytest.approx(0.001 * callback.batch_size / BATCH)
    assert learn.opt.hypers[-1]["lr"] == 0.001 and not caplog.text


def test_what_was_replaced_is_not_kept_after_the_fit():
    callback, _, learn = fit(NewLoaders(4096), NewOptimizer())
    kept = weakref.ref(learn.dls.train)
    learn.dls = loaders(16)
    gc.collect()
    assert kept() is None and callback.batch_size > BATCH


class Skips(Callback):
    """As a guard against losses that are not finite."""

    def after_loss(self) -> None:
        if self.training and self.iter % 5 == 2:
            raise CancelBatchException

    def before_step(self) -> None:
        if self.iter % 7 == 3:
            raise CancelStepException


class ValidatesWithin(Callback):
    """Validation every ten batches, as for long epochs."""

    run_valid = False

    def after_batch(self) -> None:
        if self.training and self.iter % 10 == 9:
            dl = self.dl
            self.learn._do_epoch_validate()
            self.model.train()
            self.learn.training, self.learn.dl = True, dl


@pytest.mark.parametrize("callback", [Skips, ValidatesWithin])
def test_batches_that_are_left_out_and_validation_within_an_epoch(callback, caplog):
    _, watch, _ = fit(callback(), budget="epochs")
    if callback is ValidatesWithin:
        assert all(len(set(watch.samples(epoch))) == 512 for epoch in range(3))
    assert not caplog.text


class SetsBatch(Callback):
    """As people grow a batch by hand."""

    def before_epoch(self) -> None:
        if self.epoch == 1:
            self.dls.train.bs = 2 * BATCH


class NewSize(Callback):
    def before_epoch(self) -> None:
        if self.epoch == 1:
            train = self.learn.dls.train
            self.learn.dls = DataLoaders(train.new(bs=2 * BATCH), self.learn.dls.valid)


@pytest.mark.parametrize("change", [SetsBatch, NewSize])
@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": BATCH}])
def test_with_growth_off_a_batch_that_is_set_in_a_fit_is_stocks(off, change, caplog):
    ends = []
    for adaptive in ([], [AdaptiveBatchSize(**off)]):
        set_seed(1)
        watch, learn = Watch(), Learner(loaders(300), nn.Linear(1, 1), loss_func=mse_loss, opt_func=SGD)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(3, 0.01, cbs=[*adaptive, watch, change()])
            if "overhead" in off:  # a max_batch_size below the new batch is an error
                learn.fit_one_cycle(1, 0.01, cbs=[*adaptive, watch])
        ends.append((watch.steps, learn.model.weight.item()))
    assert ends[0] == ends[1] and not caplog.text


def test_a_batch_that_is_set_while_ours_grows_is_told_so(caplog):
    _, watch, _ = fit(SetsBatch(), epochs=4)
    assert caplog.text.count("dls.train.bs has been set to 32") == len(caplog.records) == 1
    assert max(len(samples) for _, _, samples in watch.steps) > 2 * BATCH


class FirstSizeOnly(Callback):
    """Leaves out the short batch at an epoch's end, and with it all larger ones."""

    order = -20

    def __init__(self, does: str) -> None:
        self.does = does

    def before_batch(self) -> None:
        if self.does == "before" and len(self.xb[0]) != BATCH:
            raise CancelBatchException

    def after_pred(self) -> None:
        if self.does == "after" and len(self.xb[0]) != BATCH:
            raise CancelBatchException

    def after_loss(self) -> None:
        if self.does == "now and then" and self.iter % 3 == 0:
            raise CancelBatchException


@pytest.mark.parametrize("does", ["before", "after"])
def test_a_callback_that_leaves_out_larger_batches_gets_the_first_size_again(does, caplog):
    adaptive, watch = AdaptiveBatchSize(target=doubling(8), lr_scaling="linear", **FORCED), Watch()
    learn = Learner(loaders(512), nn.Linear(1, 1), loss_func=mse_loss, opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(6, 0.01, cbs=[adaptive, watch, FirstSizeOnly(does)])
    assert adaptive.batch_size == BATCH and adaptive.training_run.controller.holds.reason == PASSED
    assert caplog.text.count("nothing has been trained on") == len(caplog.records) == 1
    assert [len(watch.samples(epoch)) for epoch in range(2, 6)] == [512] * 4
    assert not any(p._post_accumulate_grad_hooks for p in learn.model.parameters())


def test_one_that_leaves_out_some_batches_does_not(caplog):
    fit(FirstSizeOnly("now and then"), epochs=6)
    assert not caplog.text


class StepsBySelf(Learner):
    """Two steps a batch, as SAM's, without the events of a step."""

    def _do_one_batch(self) -> None:
        if not self.training:
            super()._do_one_batch()
            return
        for _ in range(2):
            self.pred = self.model(*self.xb)
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self.loss = self.loss_grad.clone()
            self.loss_grad.backward()
            self.opt.step()
            self.opt.zero_grad()


@pytest.mark.parametrize("n", [192, 512])  # 12 batches an epoch, and 32
def test_a_learner_whose_steps_fire_no_event_is_told_so(n, caplog):
    adaptive = AdaptiveBatchSize(step_time=(4e-3, 1e-6))
    learn = StepsBySelf(loaders(n), nn.Linear(1, 1), loss_func=mse_loss, opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3072 // n, 0.01, cbs=adaptive)
    assert adaptive.batch_size == BATCH and adaptive.training_run.controller.holds.reason == UNMEASURED
    assert caplog.text.count("no step of the optimizer was seen in 16 batches") == len(caplog.records) == 1
    assert "self._with_events(self._step, 'step', CancelStepException)" in caplog.text


@pytest.mark.parametrize("off", [{"overhead": 0}, {"max_batch_size": BATCH}, {"target": doubling(8)}])
def test_where_the_batch_does_not_wait_for_that_nothing_is_said(off, caplog):
    learn = StepsBySelf(loaders(256), nn.Linear(1, 1), loss_func=mse_loss, opt_func=SGD)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, 0.01, cbs=AdaptiveBatchSize(lr_scaling="linear", **off))
    assert not caplog.text


class Odd(nn.Module):
    """A parameter beside its layers, with BatchNorm: measured by halves, for which a batch is cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.norm = nn.Parameter(torch.randn(1, 1)), nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(x) @ self.weight


def novel(parameters, lr):
    """An optimizer of the user's own, of whose settings nothing is known."""
    def step(p, lr, novelty=0.5, **kwargs):
        p.data.add_(p.grad.sign(), alpha=-lr * novelty)

    return Optimizer(parameters, [step], lr=lr, novelty=0.5)


def of_pairs(prediction, target, pairs):
    """Of pairs of samples, as many as there happen to be: nothing says whose they are."""
    return mse_loss(prediction, target) + 0 * pairs.float().sum()


class AddPairs(Callback):
    """Adds targets that are no longer one a sample."""

    order = 55

    def before_batch(self) -> None:
        self.learn.yb = (*self.yb, torch.zeros(len(self.xb[0]) + 3, 2))


@pytest.mark.parametrize("exceed", [False, True])
def test_a_learner_of_which_nothing_is_known_is_told_once_what_to_give(exceed, caplog):
    """It trains as without the callback, to the bit."""
    ends = []
    for adaptive in ([], [AdaptiveBatchSize(exceed_memory=exceed)]):
        set_seed(1)
        learn = Learner(loaders(300), Odd(), loss_func=of_pairs, opt_func=novel, cbs=[AddPairs()])
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 0.01, cbs=adaptive)
        ends.append(torch.cat([value.flatten().float() for value in learn.model.state_dict().values()]))
    assert torch.equal(*ends)
    (warned,) = (record.getMessage() for record in caplog.records)
    assert warned.count("\n- ") == 2 + exceed and warned.count("Give split=") == 1 + exceed
    assert "cannot be measured" in warned and "transfer=('lr',)" in warned
