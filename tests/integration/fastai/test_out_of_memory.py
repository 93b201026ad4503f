"""Learners that memory runs out on, on a simulated device."""

from __future__ import annotations

import pytest
import torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback.training import GradientClip
from torch import nn

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.run import training_run
from tests.integration.fastai.learners import TORCH_ADAMW, Rows, loss_func
from tests.simulated_device import OnDevice, SimulatedMemory

PER_SAMPLE, SAMPLES, START = 1000, 320, 8


@pytest.fixture
def memory(monkeypatch) -> SimulatedMemory:
    simulated = SimulatedMemory(1_000 * PER_SAMPLE)
    monkeypatch.setattr(training_run, "memory_of", lambda *_: simulated)
    return simulated


class Watch(Callback):
    """The indices of every training batch, as callbacks at its end see them, and its loss."""

    order = 70

    def before_fit(self):
        self.batches, self.losses, self.events = [], [], []

    def after_backward(self):
        self.events.append(("backward", len(self.xb[0])))

    def after_batch(self):
        if self.training:
            self.batches.append(self.yb[-1].tolist())
            self.losses.append(self.loss.item())
            assert len(self.pred) == len(self.xb[0])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def in_double(pred, y, index=None):
    return loss_func(pred, y.double(), index).float()  # (whose smoothed mean the Recorder keeps in single precision)


class Doubles(Rows):
    def __getitem__(self, i):
        x, y, index = super().__getitem__(i)
        return x.double(), y, index


def learner(memory, cbs=(), opt_func=TORCH_ADAMW, **kwargs) -> Learner:
    data = Doubles(SAMPLES)
    train, valid = DataLoader(data, bs=START, shuffle=True), DataLoader(Doubles(64), bs=64)
    dls = DataLoaders(train, valid)
    dls.n_inp = 1
    model = network()
    learn = Learner(dls, model, loss_func=in_double, opt_func=opt_func, cbs=[Watch(), *cbs], **kwargs)
    OnDevice(model, memory, PER_SAMPLE)
    return learn


def fit(learn: Learner, epochs: int = 2, **arguments) -> AdaptiveBatchSize:
    set_seed(3)
    callback = AdaptiveBatchSize(
        **{"target": lambda *_: 128, "lr_scaling": "none", "max_batch_size": 128, "budget": "epochs"} | arguments
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-3, cbs=callback)
    return callback


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def replay(batches) -> torch.Tensor:
    model, data = network(), Doubles(SAMPLES)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for batch in batches:
        x, y = (torch.stack([data[i][part] for i in batch]) for part in (0, 1))
        optimizer.zero_grad()
        in_double(model(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Unweighed(Callback):
    """Plain AdamW, for the replay."""

    def before_fit(self):
        for group in self.opt.opt.param_groups:
            group.update(weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)


def test_a_batch_that_does_not_fit_is_run_in_halves(memory):
    memory.capacity = 40 * PER_SAMPLE
    learn = learner(memory, cbs=[Unweighed()], wd=0.01)
    callback = fit(learn, overhead=0, step_time=(1.0, 0.0))  # (memory is not asked, so it runs into it)
    sizes = [len(batch) for batch in learn.watch.batches]
    assert 128 in sizes
    assert max(sizes[sizes.index(128) + 1 :]) <= 64
    assert ("backward", 32) in learn.watch.events and ("backward", 128) not in learn.watch.events
    half = SAMPLES
    for epoch in (learn.watch.batches[: _batches_of(half, sizes)], learn.watch.batches[_batches_of(half, sizes) :]):
        assert sorted(i for batch in epoch for i in batch) == list(range(SAMPLES))
    torch.testing.assert_close(weights(learn), replay(learn.watch.batches), rtol=1e-5, atol=1e-7)
    assert "out of memory" in callback.history.to_dict()["event"]
    assert "_do_one_batch" not in learn.__dict__


def _batches_of(samples: int, sizes: list[int]) -> int:
    seen = 0
    for i, size in enumerate(sizes, 1):
        seen += size
        if seen == samples:
            return i
    raise AssertionError("no epoch of so many samples")


def test_growth_is_tried_first(memory):
    memory.capacity = 100 * PER_SAMPLE
    learn = learner(memory)
    callback = fit(learn)
    assert 86 <= max(map(len, learn.watch.batches)) <= 90
    assert "out of memory" not in callback.history.to_dict()["event"]
    assert "memory" in callback.history.decisions()["reason"]


def test_past_the_cap_if_asked(memory):
    memory.capacity = 40 * PER_SAMPLE
    learn = learner(memory, cbs=[Unweighed()], wd=0.01)
    fit(learn, exceed_memory=True)
    assert max(map(len, learn.watch.batches)) == 128
    torch.testing.assert_close(weights(learn), replay(learn.watch.batches), rtol=1e-5, atol=1e-7)


def test_while_all_fits_nothing_is_changed_to_the_bit(memory):
    runs = []
    for adaptive in (False, True):
        learn = learner(memory, cbs=[GradientClip(0.1)])
        set_seed(3)
        cbs = [AdaptiveBatchSize(max_batch_size=START)] if adaptive else []
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, 1e-2, cbs=cbs)
        runs.append((weights(learn), learn.watch.losses))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_the_loss_that_is_shown_is_the_whole_batchs(memory):
    memory.capacity = 5 * PER_SAMPLE
    learn, data = learner(memory), Doubles(SAMPLES)
    fit(learn, 1, overhead=0, step_time=(1.0, 0.0), max_batch_size=START)
    x, y = (torch.stack([data[i][part] for i in learn.watch.batches[0]]) for part in (0, 1))
    assert learn.watch.losses[0] == pytest.approx(in_double(network()(x), y).item(), rel=1e-6)
    assert learn.watch.events[:2] == [("backward", 4), ("backward", 4)]


def test_weighted_classes_are_weighed_as_in_the_whole(memory):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 6, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    found = []
    for capacity in (1000, 20):
        memory.capacity = capacity * PER_SAMPLE
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        OnDevice(model, memory, PER_SAMPLE)
        rows = list(zip(x, y, strict=True))
        dls = DataLoaders(DataLoader(rows, bs=64), DataLoader(rows, bs=64))
        loss = CrossEntropyLossFlat(weight=torch.tensor([1.0, 5.0, 0.2]))
        learn = Learner(dls, model, loss_func=loss, opt_func=TORCH_ADAMW)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2, cbs=AdaptiveBatchSize(overhead=0, step_time=(1.0, 0.0)))
        found.append(weights(learn))
    torch.testing.assert_close(*found)


def test_an_interrupted_fit_leaves_the_learner_alone(memory):
    class Interrupt(Callback):
        def after_pred(self):
            raise KeyboardInterrupt

    learn = learner(memory)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[AdaptiveBatchSize(), Interrupt()])
    assert "_do_one_batch" not in learn.__dict__


def test_another_error_is_the_users(memory):
    def broken(pred, *targets):
        raise RuntimeError("shapes cannot be multiplied")

    learn = learner(memory)
    learn.loss_func = broken
    with pytest.raises(RuntimeError, match="cannot be multiplied"), learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[AdaptiveBatchSize(overhead=0)])


def test_a_learner_with_a_step_of_its_own_keeps_it(memory):
    class Own(Learner):
        def _do_one_batch(self):
            self.own = True
            super()._do_one_batch()

    data = Doubles(SAMPLES)
    dls = DataLoaders(DataLoader(data, bs=START), DataLoader(data, bs=64))
    dls.n_inp = 1
    learn = Own(dls, network(), loss_func=in_double, opt_func=TORCH_ADAMW)
    OnDevice(learn.model, memory, PER_SAMPLE)
    memory.capacity = 40 * PER_SAMPLE
    callback = fit(learn, 1, exceed_memory=True)
    assert learn.own
    assert callback.batch_size <= 36, "nobody runs a larger one in pieces"


@pytest.mark.parametrize("step_time", [None, (1.0, 0.0)])
@pytest.mark.parametrize(("fails_from", "largest"), [(50, 48), (70, 64), (100, 96)])
def test_a_target_that_keeps_asking_is_refused_after_few_errors(memory, fails_from, largest, step_time):
    learn = learner(memory)
    device, errors = OnDevice(learn.model, SimulatedMemory(10**9), PER_SAMPLE), []

    def fail(where):
        if device.rows[-1] >= fails_from:
            errors.append(device.rows[-1])
            raise torch.OutOfMemoryError("CUDA out of memory.")

    device.fail = fail
    callback = fit(learn, 30, overhead=0, decide_every=0.02, step_time=step_time)
    if step_time is None:  # each size is tried before it is run, and trials are no batches that have to be halved
        assert errors[0] == 128 and len(errors) <= 4 and len(errors) == len(set(errors))
        assert 0.7 * fails_from <= callback.batch_size < fails_from
    else:
        halved = [128, 64][: 1 + (fails_from <= 64)]
        assert errors[: len(halved)] == halved
        assert len(errors) <= len(halved) + 3
        assert callback.batch_size == largest
    assert max(device.rows[-20:]) == callback.batch_size, "it runs in one go"
