"""Beside every callback that ships with fastai and changes training: the table of docs/fastai.md, row by row."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from fastai.basics import Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import BnFreeze, GradientAccumulation, GradientClip
from fastai.metrics import accuracy
from torch import nn

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import doubling, make_learner, touchy_model, weights

CLASSES = 4


def classifier(cbs=(), n: int = 400, bs: int = 16, noise: float = 2.0, **kwargs) -> Learner:
    set_seed(5)
    y = torch.arange(n) % CLASSES
    x = nn.functional.one_hot(y, 6).float() + noise * torch.randn(n, 6)
    rows = list(zip(x, y, strict=True))
    dls = DataLoaders(DataLoader(rows, bs=bs, shuffle=True), DataLoader(rows[:100], bs=50))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=list(cbs), metrics=accuracy, **kwargs)
    learn.remove_cb(learn.progress)
    return learn


def fit(learn: Learner, epochs: int = 3, beside=(), **arguments) -> AdaptiveBatchSize:
    callback = AdaptiveBatchSize(**{"target": doubling, "max_batch_size": 64} | arguments)
    with learn.no_logging():
        learn.fit_one_cycle(epochs, 1e-2, cbs=[*beside, callback])
    return callback


@pytest.mark.parametrize("mix", [MixUp, CutMix])
def test_mixed_samples_are_measured_with_their_partners(mix):
    def images(n: int = 256) -> Learner:
        set_seed(5)
        y = torch.arange(n) % 2
        x = y.float()[:, None, None, None] + 2 * torch.randn(n, 1, 4, 4)
        rows = list(zip(x, y, strict=True))
        dls = DataLoaders(DataLoader(rows, bs=16, shuffle=True), DataLoader(rows[:64], bs=32))
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=[mix()])
        learn.remove_cb(learn.progress)
        return learn

    learn = images()
    callback = fit(learn, target="goodput", overhead=0.4, source="halves", step_time=(1e-3, 1e-6))
    assert callback.history.to_dict()["event"].count("measurement") >= 8
    plain, measured = images(), images()
    for learn, quiet in ((plain, True), (measured, False)):
        set_seed(6)
        cbs = [] if quiet else [AdaptiveBatchSize(max_batch_size=16, overhead=0.3)]
        with learn.no_logging():
            learn.fit_one_cycle(2, 1e-2, cbs=cbs)
    assert all(map(torch.equal, weights(plain), weights(measured)))


def test_mixed_samples_weigh_the_same_in_pieces(monkeypatch):
    from adaptbs.run import training_run
    from tests.simulated_device import OnDevice, SimulatedMemory

    found = []
    for capacity in (1000, 10):
        memory = SimulatedMemory(capacity * 1000)
        monkeypatch.setattr(training_run, "memory_of", lambda *_, memory=memory: memory)
        learn = classifier([MixUp()])
        OnDevice(learn.model, memory, 1000)
        set_seed(9)
        with learn.no_logging():
            learn.fit(1, 1e-3, cbs=AdaptiveBatchSize(max_batch_size=16, overhead=0, step_time=(1.0, 0.0), target=same))
        found.append(learn.recorder.losses[0])
    torch.testing.assert_close(*found)


def same(noise_scale, batch_size, progress):
    return batch_size


def test_clipping_clips_the_batchs_gradient():
    norms = []

    class Norms(Callback):
        order = GradientClip.order + 1

        def before_step(self):
            norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())

    fit(classifier([GradientClip(0.01), Norms()]))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_best_model_is_saved_and_loaded(tmp_path):
    learn = classifier(path=tmp_path)
    fit(learn, beside=[SaveModelCallback(monitor="accuracy")])
    best = max(row[2] for row in learn.recorder.values)
    assert learn.validate()[1] == pytest.approx(best)


def test_stopping_early_ends_the_fit():
    learn = classifier([EarlyStoppingCallback(monitor="accuracy", min_delta=2.0, patience=1)])
    fit(learn, 9)
    assert len(learn.recorder.values) == 2


def test_a_plateau_lowers_the_rate_that_the_batch_scales():
    learn = classifier([ReduceLROnPlateau(monitor="accuracy", min_delta=2.0, patience=1, factor=10)])
    with learn.no_logging():
        learn.fit(4, 1e-2, cbs=AdaptiveBatchSize(target=doubling, max_batch_size=64, budget="epochs"))
    assert learn.recorder.lrs[-1] < 1e-2, "sqrt(4) times more for the batch, ten times and more less for the plateau"


def test_nan_ends_the_fit():
    class Break(Callback):
        def after_loss(self):
            if self.training and self.train_iter == 5:
                self.learn.loss = self.learn.loss * math.nan

    learn = classifier([Break(), TerminateOnNaNCallback()])
    fit(learn)
    assert learn.train_iter <= 6


def test_a_schedule_of_any_parameter_goes_by_progress():
    seen = []

    class Momenta(Callback):
        order = 60.5

        def before_batch(self):
            if self.training:
                seen.append((self.pct_train, self.opt.hypers[-1]["mom"]))

    learn = classifier([Momenta(), ParamScheduler({"mom": SchedCos(0.95, 0.5)})])
    with learn.no_logging():
        learn.fit(3, 1e-2, cbs=AdaptiveBatchSize(target=doubling, max_batch_size=64))
    schedule = SchedCos(0.95, 0.5)
    for progress, momentum in seen:
        assert momentum == pytest.approx(schedule(progress), abs=1e-6)


def test_frozen_batch_norm_stays_frozen():
    learn = make_learner(model=touchy_model, cbs=BnFreeze)
    learn.model[1].weight.requires_grad_(False)
    learn.model[1].bias.requires_grad_(False)
    before = learn.model[1].running_mean.clone()
    with learn.no_logging():
        learn.fit(2, 1e-2, cbs=AdaptiveBatchSize(target=doubling, max_batch_size=64))
    assert torch.equal(learn.model[1].running_mean, before)


@pytest.mark.parametrize("mode", ["to_fp16", "to_bf16"])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda', but CUDA is not available")
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler")
def test_mixed_precision_grows_as_well(mode):
    """On a CPU fastai switches both off; on CUDA: tests/gpu."""
    learn = getattr(classifier(), mode)()
    callback = fit(learn)
    assert callback.batch_size == 64
    assert "measurement" in callback.history.to_dict()["event"]


def test_columns_show_batch_size_and_noise_scale(tmp_path):
    learn = classifier([CSVLogger()], path=tmp_path)
    callback = fit(learn)
    table = learn.csv_logger.read_log()
    shown = ["epoch", "train_loss", "valid_loss", "accuracy", "bs", "noise_scale", "samples", "time"]
    assert list(table.columns) == shown
    assert table.bs.iloc[-1] == callback.batch_size == 64
    assert pd.api.types.is_numeric_dtype(table.noise_scale)
    assert len(learn.recorder.metric_names) == len(learn.recorder.values[0]) + 2
    assert len(learn.validate()) == 2, "as without the callback"
    assert not any("olumns" in type(cb).__name__ for cb in learn.cbs), "gone with the callback"
    with learn.no_logging():
        learn.fit(1, 1e-3)
    assert "bs" not in learn.recorder.metric_names


def test_without_a_recorder_there_are_no_columns():
    learn = classifier()
    learn.remove_cb(learn.recorder)
    callback = AdaptiveBatchSize(target=doubling, max_batch_size=64)
    learn.fit(1, 1e-3, cbs=callback)
    assert callback.batch_size == 64


def test_the_finder_and_the_finder_of_rates_in_either_order_with_the_callback_attached(tmp_path):
    found = []
    for first, second in (("lr_find", "bs_find"), ("bs_find", "lr_find")):
        learn = classifier([AdaptiveBatchSize()], path=tmp_path)
        before = weights(learn)
        for name in (first, second):
            set_seed(3)
            with learn.no_logging():
                result = getattr(learn, name)(show_plot=False)
            if name == "bs_find":
                found.append(result.noise_scale)
            assert all(map(torch.equal, weights(learn), before)), name
        with learn.no_logging():
            learn.fit(1, 1e-3)
    assert all(scale is None or scale > 0 for scale in found)


def test_cancelling_leaves_nothing_behind():
    class Cancel(Callback):
        def before_batch(self):
            if self.training and self.train_iter == 7:
                raise CancelFitException

    learn = classifier([Cancel()])
    fit(learn)
    assert "_do_one_batch" not in learn.__dict__
    assert [type(cb).__name__ for cb in learn.cbs if "daptive" in type(cb).__name__] == []


class Steps(Callback):
    """Rows of each forward pass, and the rows behind each step."""

    order = 70

    def before_fit(self):
        self.passes, self.steps, self._since = [], [], 0

    def after_pred(self):
        if self.training:
            self.passes.append(len(self.xb[0]))
            self._since += len(self.xb[0])

    def after_step(self):
        self.steps.append(self._since)
        self._since = 0


def test_accumulated_batches_grow_from_what_is_accumulated():
    learn = classifier([Steps(), GradientAccumulation(60)], n=640)
    callback = fit(learn, 2, max_batch_size=256, budget="epochs")
    assert learn.steps.steps[0] == 64, "60 in batches of 16"
    assert max(learn.steps.steps) == 256
    assert max(learn.steps.passes) == 16, "never more in one go than the loader's batch"
    assert sum(learn.steps.steps) == 2 * 640
    assert callback.batch_size == 256
    before = len(learn.steps.steps)
    with learn.no_logging():
        learn.fit(1, 1e-3)
    assert before and len(learn.steps.steps) == 10, "without us it accumulates as ever"


def test_an_accumulated_step_is_the_step_of_its_samples():
    learn, plain = classifier([GradientAccumulation(64)], n=64), classifier(n=64, bs=64)
    plain.model.load_state_dict(learn.model.state_dict())
    fit(learn, 1, target=same, overhead=0)
    fit(plain, 1, target=same, overhead=0)
    for ours, theirs in zip(weights(learn), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_interrupted_fit_gives_accumulation_back():
    class Interrupt(Callback):
        def after_pred(self):
            raise KeyboardInterrupt

    learn = classifier([GradientAccumulation(64)])
    with pytest.raises(KeyboardInterrupt):
        fit(learn, beside=[Interrupt()])
    assert learn.gradient_accumulation.run


def test_the_batch_of_a_fit_can_be_kept_for_the_next():
    learn = classifier()
    first = fit(learn, 1, budget="epochs")
    assert first.batch_size > 16 and learn.dls.train.bs == 16
    learn.dls.train.bs = first.batch_size
    second = fit(learn, 1, base_batch_size=16, target=lambda noise_scale, size, progress: size)
    history = second.history.decisions()
    assert set(history["batch_size"]) == {first.batch_size}
    assert set(history["lr_factor"]) != {1.0}, "the learning rate stays stated for 16"


def test_loaders_of_distributed_training_are_refused():
    class DistributedDL(DataLoader):
        """Of that name is what fastai's DistributedTrainer makes of a loader; its module needs accelerate."""

    learn = classifier()
    learn.dls.loaders[0] = DistributedDL([(torch.zeros(6), 0)] * 64, bs=16)
    with pytest.raises(TypeError, match="which would not agree"):
        fit(learn, 1)


def test_a_data_parallel_model_is_grown_and_measured():
    learn = classifier()
    learn.model = nn.DataParallel(learn.model)  # as ParallelTrainer wraps it; without GPUs it passes batches through
    callback = fit(learn, target="goodput", step_time=(1e-2, 1e-6), overhead=0.4)
    assert callback.noise_scale.measurements >= 4
    assert callback.batch_size > 16
