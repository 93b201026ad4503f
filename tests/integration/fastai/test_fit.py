"""AdaptiveBatchSize in real fits: nothing changes while the batch does not, and only what should once it does."""

from __future__ import annotations

import gc
import math
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from fastai.basics import SGD, Adam, Callback, CancelFitException, Learner, OptimWrapper, RMSProp
from fastai.callback.schedule import combined_cos
from fastai.callback.training import ShortEpochCallback
from torch import nn

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import (
    TORCH_ADAMW,
    Augmented,
    Watch,
    body_and_head,
    doubling,
    make_learner,
    make_tabular_learner,
    same,
    touchy_model,
    weights,
)


def growing(decide_every: float = 0.05, **settings: Any) -> AdaptiveBatchSize:
    """Doubles at every decision, up to 80, and measures nothing."""
    chosen = {"target": doubling, "overhead": 0, "max_batch_size": 80, "decide_every": decide_every, **settings}
    return AdaptiveBatchSize(**chosen)


def one_cycle(learn: Learner, *cbs: Callback) -> Learner:
    learn.fit_one_cycle(2, 1e-2, cbs=list(cbs))
    return learn


# A batch that never changes leaves training as it was, to the bit.


@pytest.mark.parametrize("opt_func", [Adam, RMSProp, TORCH_ADAMW], ids=["Adam", "RMSProp", "OptimWrapper"])
@pytest.mark.parametrize(("num_workers", "drop_last"), [(0, False), (0, True), (2, False), (2, True)])
def test_a_fixed_batch_trains_as_without_adaptbs(opt_func: Any, num_workers: int, drop_last: bool) -> None:
    def run(*cbs: Callback) -> Learner:
        options = {"num_workers": num_workers, "drop_last": drop_last, "rows": Augmented}
        return one_cycle(make_learner(model=touchy_model, opt_func=opt_func, **options), *cbs)

    stock, ours = run(), run(AdaptiveBatchSize(max_batch_size=20, overhead=0))
    assert same(weights(stock), weights(ours))
    assert stock.recorder.lrs == ours.recorder.lrs
    assert stock.recorder.losses == ours.recorder.losses
    assert stock.recorder.values == [row[:-3] for row in ours.recorder.values]  # (three columns of the callback's own)


def test_a_fixed_batch_trains_a_tabular_learner_as_without_adaptbs() -> None:
    stock = one_cycle(make_tabular_learner())
    ours = one_cycle(make_tabular_learner(), AdaptiveBatchSize(max_batch_size=25, overhead=0))
    assert same(weights(stock), weights(ours))


def test_measuring_leaves_training_untouched() -> None:
    callback = AdaptiveBatchSize(
        max_batch_size=4, step_time=(1e-3, 1e-6), overhead=0.1
    )  # so that no clock cuts it short
    make = partial(make_learner, bs=4, n=340, model=touchy_model, rows=Augmented)
    stock, ours = one_cycle(make()), one_cycle(make(), callback)
    assert callback.history.to_dict()["event"].count("measurement") >= 8
    assert same(weights(stock), weights(ours))


def test_a_subclass_may_handle_events_that_the_callback_does_not() -> None:
    class Counting(AdaptiveBatchSize):
        steps = 0

        def after_step(self) -> None:
            Counting.steps += 1

    make_learner(bs=20, n=100).fit(1, cbs=Counting(overhead=0))
    assert Counting.steps == 5


# A batch that grows: the same samples, and the same schedule in samples.


@pytest.mark.parametrize(
    ("bs", "drop_last", "num_workers"),
    [(16, False, 0), (16, True, 2), (20, True, 0), (20, False, 2), (13, True, 0), (13, False, 2), (13, True, 2)],
)
def test_every_sample_comes_once_in_the_order_of_a_stock_run(bs: int, drop_last: bool, num_workers: int) -> None:
    make = partial(make_learner, bs=bs, n=403, drop_last=drop_last)
    stock, ours = Watch(), Watch()
    make().fit(2, cbs=stock)
    make(num_workers=num_workers).fit(2, cbs=[growing(), ours])

    assert ours.indices == stock.indices
    assert all(len(set(epoch)) == len(epoch) == (403 - 403 % bs if drop_last else 403) for epoch in ours.indices)
    assert len(set(ours.sizes[0])) > 2, "the batch should grow within the first epoch"
    assert max(map(max, ours.sizes)) == 80


@pytest.mark.parametrize("schedule", ["fit_one_cycle", "fit_flat_cos"])
@pytest.mark.parametrize(("bs", "drop_last"), [(20, False), (20, True), (13, False)])
def test_schedules_follow_samples(schedule: str, bs: int, drop_last: bool) -> None:
    learn, watch = make_learner(bs=bs, n=403, drop_last=drop_last), Watch()
    getattr(learn, schedule)(2, 1e-2, cbs=[growing(), watch])
    closed_forms = {
        "fit_one_cycle": {"lr": combined_cos(0.25, 1e-2 / 25, 1e-2, 1e-7), "mom": combined_cos(0.25, 0.95, 0.85, 0.95)},
        "fit_flat_cos": {"lr": combined_cos(0.75, 1e-2, 1e-2, 1e-7)},
    }[schedule]

    assert len(watch.steps) < 2 * len(learn.dls.train)
    for epoch, seen, hypers in watch.steps:
        progress = (epoch + Fraction(seen, bs * len(learn.dls.train))) / 2
        for name, closed_form in closed_forms.items():
            assert hypers[0][name] == pytest.approx(closed_form(float(progress)), rel=1e-6)
    assert learn.pct_train == 1


def test_where_both_have_seen_as_much_the_unscaled_lr_is_that_of_a_stock_run() -> None:
    stock, ours = Watch(), Watch()
    make_learner(n=403).fit_one_cycle(2, 1e-2, cbs=stock)
    make_learner(n=403).fit_one_cycle(2, 1e-2, cbs=[growing(), ours])
    fixed = {(epoch, seen): hypers[0]["lr"] for epoch, seen, hypers in stock.steps}
    common = [(fixed[epoch, seen], hypers[0]["lr"]) for epoch, seen, hypers in ours.steps if (epoch, seen) in fixed]
    assert len(common) > 8
    assert all(mine == pytest.approx(theirs, rel=1e-6) for theirs, mine in common)


@pytest.mark.parametrize(
    ("opt_func", "power"),
    [
        (Adam, 0.5),
        (partial(SGD, mom=0.9), 1),
        (TORCH_ADAMW, 0.5),
        (partial(OptimWrapper, opt=torch.optim.Adagrad), 0.5),
        (partial(OptimWrapper, opt=torch.optim.SGD), 1),
    ],
    ids=["Adam", "SGD", "torch AdamW", "torch Adagrad", "torch SGD"],
)
def test_the_recorder_logs_the_lr_used_and_the_optimizer_gets_its_own_back(opt_func: Any, power: float) -> None:
    learn, watch = make_learner(n=403, opt_func=opt_func, splitter=body_and_head), Watch()
    learn.fit(2, slice(1e-4, 1e-3), cbs=[growing(transfer=["lr"]), watch])

    assert [hypers["lr"] for hypers in learn.opt.hypers] == pytest.approx([1e-4, 1e-3], rel=1e-12)
    used = iter(learn.recorder.lrs)
    for sizes in watch.sizes:
        for size in sizes[:-1]:
            assert next(used) == pytest.approx(1e-3 * (size / 20) ** power)
        # An epoch's last batch is short by chance and keeps the learning rate of the size it was cut at.
        assert next(used) == pytest.approx(1e-3 * 4**power)
    assert next(used, None) is None


def test_with_workers_the_lr_follows_the_batch_delivered_not_the_one_decided() -> None:
    learn, watch, callback = make_learner(n=1203, num_workers=2), Watch(), growing(transfer=["lr"])
    learn.fit(1, 1e-2, cbs=[callback, watch])
    decided = callback.history.to_dict()["samples"][1]
    grown = watch.sizes[0].index(40)
    assert sum(watch.sizes[0][:grown]) >= decided + 4 * 20, "two workers have two batches each on their way"
    *used, _ = learn.recorder.lrs
    assert used == [pytest.approx(1e-2 * math.sqrt(size / 20)) for size in watch.sizes[0][:-1]]


def test_progress_bar_and_counters_end_at_the_batches_delivered(capsys: pytest.CaptureFixture[str]) -> None:
    class ReadTotals(Callback):
        order, run_valid = 62, False

        def after_train(self) -> None:
            seen.append((self.iter + 1, self.n_iter, self.progress.pbar.total))

    seen: list[tuple[int, int, int]] = []
    learn, watch = make_learner(n=403, progress=True, cbs=ReadTotals), Watch()
    learn.fit_one_cycle(3, 1e-2, cbs=[growing(), watch])

    batches = [len(sizes) for sizes in watch.sizes]
    assert batches[0] > batches[1] == batches[2]
    assert seen == [(n, n, n) for n in batches]
    assert learn.train_iter == len(learn.recorder.losses) == len(learn.recorder.lrs) == sum(batches)
    assert len(learn.recorder.values) == 3
    shown = capsys.readouterr().out
    assert all(f"100.00% [{n}/{n} " in shown for n in batches)


# Every way to fit.

FITS = {
    "fit": lambda learn, *cbs: learn.fit(3, 1e-2, cbs=list(cbs)),
    "fit_one_cycle": lambda learn, *cbs: learn.fit_one_cycle(3, 1e-2, cbs=list(cbs)),
    "fit_flat_cos": lambda learn, *cbs: learn.fit_flat_cos(3, 1e-2, cbs=list(cbs)),
    "fit_sgdr": lambda learn, *cbs: learn.fit_sgdr(2, 1, 1e-2, cbs=list(cbs)),
    "fine_tune": lambda learn, *cbs: learn.fine_tune(3, 1e-2, cbs=list(cbs)),
}


@pytest.mark.parametrize("name", FITS)
def test_every_kind_of_fit_grows_learns_and_ends_as_it_should(name: str) -> None:
    learn, watch = make_learner(n=403, model=touchy_model, splitter=body_and_head), Watch()
    train = learn.dls.train
    before = learn.validate()[0]
    callback = growing(decide_every=0.02)
    FITS[name](learn, callback, watch)

    assert [sorted(epoch) for epoch in watch.indices] == 3 * [list(range(403))]
    assert callback.batch_size == 80
    assert watch.totals == [(len(sizes), len(sizes)) for sizes in watch.sizes]
    assert learn.recorder.values[-1][1] < 0.9 * before
    _, _, last = watch.steps[-1]
    assert [h["lr"] for h in learn.opt.hypers] == [h["lr"] for h in last]
    assert learn.dls.train is train and train.bs == 20


def test_a_frozen_body_is_neither_moved_nor_measured() -> None:
    learn, callback = make_learner(bs=8, n=1600, splitter=body_and_head), AdaptiveBatchSize(step_time=(4e-3, 1e-6))
    learn.freeze()
    before = weights(learn)
    learn.fit(1, cbs=callback)
    after = weights(learn)
    assert same(before[:2], after[:2]) and not same(before[2:], after[2:])
    assert callback.noise_scale is not None


def test_the_noise_scale_of_each_of_the_splitters_groups_and_in_adams_metric() -> None:
    learn = make_learner(bs=8, n=1600, splitter=body_and_head)
    callback = AdaptiveBatchSize(step_time=(4e-3, 1e-6), overhead=0.5, metric="adam", by_group=True)
    learn.fit(1, cbs=callback)
    assert set(callback.views) == {"adam", "group 0", "group 1"}
    assert callback.noise_scale is not None
    parts = callback.views["group 0"].trace + callback.views["group 1"].trace
    assert parts == pytest.approx(callback.noise_scale.trace, rel=1e-4)
    learn.freeze()
    learn.fit(1, cbs=callback)
    assert set(callback.views) == {"adam", "group 1"}, "a frozen group has no gradient"


def test_adams_metric_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="metric='adam' needs the second moment"):
        make_learner(opt_func=SGD).fit(1, cbs=AdaptiveBatchSize(metric="adam"))


def test_a_source_that_cannot_measure_the_model_is_an_error_where_it_was_asked_for() -> None:
    with pytest.raises(ValueError, match=r"source='in_step' .*BatchNorm"):
        make_learner(model=touchy_model).fit(1, cbs=AdaptiveBatchSize(source="in_step"))


def test_an_instance_serves_two_fits() -> None:
    callback, learn = growing(), make_learner()
    learn.fit(2, cbs=callback)
    first = callback.history
    learn.fit(1, cbs=callback)
    assert callback.history is not first
    assert first.to_dict()["batch_size"][0] == callback.history.to_dict()["batch_size"][0] == 20


def test_lr_find_validate_and_get_preds_do_not_notice_the_callback(tmp_path: Any) -> None:
    callback = growing()
    stock, ours = make_learner(path=tmp_path), make_learner(path=tmp_path, cbs=callback)
    assert ours.validate() == stock.validate()
    assert ours.lr_find(show_plot=False) == stock.lr_find(show_plot=False)
    assert torch.equal(ours.get_preds()[0], stock.get_preds()[0])
    assert same(weights(stock), weights(ours))
    assert len(callback.history) == 0

    ours.fit(1)
    records = len(callback.history)
    assert records > 1
    ours.validate()
    ours.get_preds()
    assert len(callback.history) == records


def test_validation_in_the_middle_of_a_fit_does_not_begin_a_new_run() -> None:
    class Peek(Callback):
        def after_train(self) -> None:
            self.learn.validate()

    callback = growing()
    make_learner().fit(2, cbs=[callback, Peek()])
    assert callback.history.to_dict()["samples"][-1] > 203


# Fits that are cut short.


class StopAt(Callback):
    """Raises once `at` batches have been trained on; at order 0 that is before AdaptiveBatchSize has its turn."""

    def __init__(self, at: int, event: str, exception: type[BaseException]) -> None:
        self.at, self.exception = at, exception
        setattr(self, event, self.stop)

    def stop(self) -> None:
        if self.train_iter == self.at:
            raise self.exception


def test_after_an_interrupt_the_learning_rate_is_back_and_a_fresh_fit_works() -> None:
    learn, used = make_learner(n=403), []

    class Spy(Callback):
        def after_backward(self):
            used.append(self.opt.hypers[0]["lr"])

    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, 1e-2, cbs=[growing(), Spy(), StopAt(8, "after_backward", KeyboardInterrupt)])
    assert used[-1] > 1e-2, "it should be interrupted where the learning rate is scaled"
    gc.collect()  # of the traceback, which holds on to the loop
    assert learn.opt.hypers[0]["lr"] == 1e-2

    learn.fit(1, 1e-2)
    assert set(learn.recorder.lrs) == {1e-2} and len(learn.recorder.lrs) == 21

    watch = Watch()
    learn.fit(1, 1e-2, cbs=[growing(), watch])
    assert sorted(watch.indices[0]) == list(range(403)) and watch.steps[0][2][0]["lr"] == 1e-2


def test_a_fit_cancelled_by_a_callback_gives_the_lr_back() -> None:
    learn = make_learner(n=403)
    learn.fit(2, 1e-2, cbs=[growing(), StopAt(8, "after_batch", CancelFitException)])
    assert learn.recorder.lrs[-1] > 1e-2 == learn.opt.hypers[0]["lr"]


def test_epochs_cut_short_do_not_scale_the_lr_twice() -> None:
    learn = make_learner(n=403)
    learn.fit(4, 1e-2, cbs=[growing(transfer=["lr"]), ShortEpochCallback(pct=0.3)])
    assert max(learn.recorder.lrs) == pytest.approx(1e-2 * math.sqrt(80 / 20))
    assert learn.opt.hypers[0]["lr"] == 1e-2


# Adaptive for real.


def test_the_batch_grows_where_noise_is_large_and_the_loss_does_not_suffer() -> None:
    def run(*cbs: Callback) -> Learner:
        learn = make_learner(bs=16, n=3200, noise=4.0)
        learn.fit_one_cycle(3, 1e-2, cbs=list(cbs))
        return learn

    fixed, watch = run(), Watch()
    first, second = (AdaptiveBatchSize(step_time=(4e-3, 1e-6)) for _ in range(2))
    adaptive, again = run(first, watch), run(second)

    assert any(len(set(sizes[:-1])) > 1 for sizes in watch.sizes), "it should grow in the middle of an epoch"
    assert len(adaptive.recorder.losses) < 0.9 * len(fixed.recorder.losses)
    assert adaptive.recorder.values[-1][1] < 1.05 * fixed.recorder.values[-1][1]
    assert first.noise_scale is not None and first.batch_size == second.batch_size > 16

    assert same(weights(adaptive), weights(again)), "with step_time= given a run can be repeated"
    assert first.history.to_dict() == second.history.to_dict()


def test_measuring_copes_with_four_samples_and_batch_norm(caplog: pytest.LogCaptureFixture) -> None:
    callback = AdaptiveBatchSize(max_batch_size=4, overhead=0.5, step_time=(1e-3, 1e-6))  # too short a run to be timed
    make_learner(bs=4, n=80, model=touchy_model).fit(1, cbs=callback)
    assert callback.noise_scale is not None and callback.noise_scale.measurements >= 4
    assert not caplog.records


# Wrong input.


@pytest.mark.parametrize(
    ("bs", "settings", "message"),
    [(300, {}, "batch_size=300"), (20, {"max_batch_size": 19}, "max_batch_size=19")],
)
def test_an_impossible_size_is_refused_and_nothing_changes(bs: int, settings: dict[str, Any], message: str) -> None:
    stock = make_learner(bs=bs)
    stock.fit(1)
    refused = make_learner(bs=bs)
    with pytest.raises(ValueError, match=message):
        refused.fit(1, cbs=AdaptiveBatchSize(**settings))
    refused.fit(1)
    assert same(weights(stock), weights(refused))
    assert stock.recorder.losses == refused.recorder.losses


def test_a_model_without_a_trainable_parameter_is_refused() -> None:
    learn = make_learner()
    learn.create_opt()
    learn.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        learn.fit(1, cbs=AdaptiveBatchSize())


def test_a_learner_whose_loss_cannot_be_computed_apart_is_measured_in_its_step(caplog) -> None:
    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x):
            return self.layer(x), x

    class TakeFirst(Callback):
        def after_pred(self):
            self.learn.pred = self.pred[0]

    learn = make_learner(n=403, model=TwoOutputs)
    callback = AdaptiveBatchSize(overhead=0.5, step_time=(1e-3, 1e-6))
    learn.fit(1, 1e-2, cbs=[TakeFirst(), callback])
    assert "cannot be measured" not in caplog.text
    assert callback.noise_scale.measurements >= 5


class OnlyByHalves(nn.Module):
    """Has two outputs, of which the loss takes the first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x), x


class TakeKept(Callback):
    """Makes the prediction of an output whose place it keeps from the beginning of a batch."""

    def __init__(self) -> None:
        self.kept = []

    def before_batch(self):
        self.kept.append(0)

    def after_pred(self):
        self.learn.pred = self.pred[self.kept.pop()]


def test_halves_follow_a_callback_that_makes_the_prediction_and_leave_it_what_it_keeps(caplog) -> None:
    learn = make_learner(n=403, model=OnlyByHalves)
    callback, take = AdaptiveBatchSize(overhead=0.5), TakeKept()
    learn.fit(1, 1e-2, cbs=[take, callback])
    assert "cannot be measured" not in caplog.text and take.kept == []
    assert callback.noise_scale is not None
    assert set(callback.history.to_dict()["source"]) - {None} == {"halves"}


def test_where_it_cannot_the_learner_trains_on_with_its_batch_held(caplog) -> None:
    class KeepsLater(TakeKept):
        order = AdaptiveBatchSize.order + 1

    learn = make_learner(n=403, model=OnlyByHalves)
    callback = AdaptiveBatchSize(overhead=0.5)
    learn.fit(1, 1e-2, cbs=[KeepsLater(), callback])
    assert caplog.text.count("cannot be measured") == 1
    assert callback.batch_size == 20 and callback.noise_scale is None


def test_a_resumed_fit_counts_the_epochs_before() -> None:
    callback = AdaptiveBatchSize()
    make_learner(n=403).fit(4, 1e-2, cbs=callback, start_epoch=2)
    assert callback.history.to_dict()["progress"][1] > 0.5


def test_the_next_fit_can_go_on_from_a_saved_state() -> None:
    callback = growing()
    make_learner(n=403).fit(1, 1e-2, cbs=callback)
    resumed = growing()
    resumed.load_state_dict(callback.state_dict())
    make_learner(n=403).fit(1, 1e-2, cbs=resumed)
    assert resumed.history.to_dict()["batch_size"][: len(callback.history)] == callback.history.to_dict()["batch_size"]
    resumed.load_state_dict(callback.state_dict())
    with pytest.raises(ValueError, match="epoch_samples"):
        make_learner(n=503).fit(1, 1e-2, cbs=resumed)


OLD = [{"controller": None}, {"controller": {"run": {}}, "hyperparameters": []}, {"version": 3}]


@pytest.mark.parametrize("old", OLD)
def test_a_state_of_another_version_is_refused_in_the_words_of_the_loader(old) -> None:
    callback = AdaptiveBatchSize()
    with pytest.raises(ValueError, match=r"of version (None|3), this adaptbs reads \d+: finish the run"):
        callback.load_state_dict(old)
    make_learner(n=403).fit(1, 1e-2, cbs=callback)  # nothing was taken over


def test_what_is_no_state_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"state=\[1\]: it must be what state_dict\(\) returned"):
        AdaptiveBatchSize().load_state_dict([1])


def test_before_its_first_fit_there_is_no_state_and_none_to_go_on_from() -> None:
    callback = AdaptiveBatchSize()
    assert callback.state_dict() == {}
    callback.load_state_dict({})
    make_learner(n=403).fit(1, 1e-2, cbs=callback)
    assert callback.state_dict()["version"] >= 4


def test_decisions_keep_their_pace_where_an_epoch_is_shorter_than_the_time_between_two() -> None:
    callback = growing()  # every 5 % of 50 epochs: every two and a half
    make_learner(n=103).fit(50, 1e-2, cbs=callback)
    assert 16 <= callback.history.to_dict()["event"].count("decision") <= 20
    assert callback.batch_size == 80


def test_a_fit_of_no_epochs_is_none() -> None:
    callback = growing()
    learn = make_learner(splitter=body_and_head, cbs=callback)
    learn.fine_tune(2, freeze_epochs=0)
    assert callback.batch_size == 80
    learn.fit(0)
    assert callback.run, "the next fit has it again"
    assert len(callback.history) > 1, "and what the last one told is kept"


def test_two_callbacks_whose_factors_would_multiply_are_refused() -> None:
    learn = make_learner(cbs=growing())
    with pytest.raises(ValueError, match="two AdaptiveBatchSize callbacks"):
        learn.fit(1, 1e-2, cbs=growing())
    assert learn.fit(1, 1e-2) is None, "the one that it has is as it was"


@pytest.mark.parametrize("event", ["before_epoch", "after_epoch", "after_batch"])
def test_a_callback_added_in_the_middle_of_a_fit_says_so(event: str) -> None:
    learn = make_learner()
    add = Callback()
    setattr(add, event, lambda: learn.add_cb(growing()))
    with pytest.raises(RuntimeError, match="in the middle of a fit"):
        learn.fit(2, 1e-2, cbs=add)
