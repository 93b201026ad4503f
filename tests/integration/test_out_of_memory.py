"""Runs that memory runs out in, on a simulated device: all end, see each sample once, and train as if it had fitted."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients.meter import NoiseMeter
from adaptbs.memory import trial
from adaptbs.memory.limit import MemoryLimit
from adaptbs.run import training_run
from tests.integration.training import Numbered
from tests.simulated_device import OnDevice, SimulatedMemory

SAMPLES, EPOCHS, START = 320, 2, 8
FEW = 160  # samples of the many runs
PER_SAMPLE = 1000
PLACES = ("forward", "backward", "step", "measurement", "probe", "growth")


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    x, y, _ = batch
    return nn.functional.mse_loss(model(x.double()), y.double())


def network() -> nn.Module:
    """Without BatchNorm or dropout, to which pieces of a batch are another thing; in double precision, as Adam makes
    much of what is left of a gradient that should be 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def growing(noise_scale, batch_size: int, progress: float) -> int:
    return START * 2 ** int(4 * progress)


@pytest.fixture
def memory(monkeypatch) -> SimulatedMemory:
    simulated = SimulatedMemory(1_000 * PER_SAMPLE)
    monkeypatch.setattr(training_run, "memory_of", lambda *_: simulated)
    return simulated


class Faults:
    """Raises OutOfMemoryError the n-th time that a run comes to a place."""

    def __init__(self, place: str, n: int, monkeypatch) -> None:
        self.place, self.left, self.raised, self._at = place, n, 0, "training"
        self._sizes: set[int] = set()
        for method in ("begin", "look"):
            monkeypatch.setattr(NoiseMeter, method, self._within("measurement", getattr(NoiseMeter, method)))
        monkeypatch.setattr(trial, "_peak", self._within("probe", trial._peak))

    def _within(self, where: str, function):
        def run(*args, **kwargs):
            with self._being(where):
                return function(*args, **kwargs)

        return run

    @contextmanager
    def _being(self, where: str):
        before, self._at = self._at, where
        try:
            yield
        finally:
            self._at = before

    def __call__(self, passing: str, rows: int = 0) -> None:
        here = {"forward", "backward", "step"} & {passing} if self._at == "training" else {self._at}
        if self._at == "training" and passing == "forward" and rows not in self._sizes:
            self._sizes.add(rows)
            here = {*here, "growth"}
        if self.place not in here or self.raised:
            return
        self.left -= 1
        if not self.left:
            self.raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory. (injected)")


def train(
    memory, make, faults=None, epochs: int = EPOCHS, per_sample: int = PER_SAMPLE, samples: int = SAMPLES, **arguments
):
    """Train with loader.step(); weights, indices by batch and epoch, and the loader."""
    model = network()
    optimizer = make(model.parameters())
    device = OnDevice(model, memory, per_sample)
    if faults is not None:
        device.fail = lambda where: faults(where, device.rows[-1])
        optimizer.register_step_pre_hook(lambda *_: faults("step"))
    loader = AdaptiveDataLoader(
        Numbered(samples), START, shuffle=True, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=epochs,
        **{"target": growing, "lr_scaling": "none", "overhead": 0.3, "max_batch_size": 128} | arguments,
    )  # fmt: skip
    seen = []
    torch.manual_seed(1)
    for _ in range(epochs):
        seen.append([])
        for batch in loader:
            seen[-1].append(batch[2].tolist())
            loader.step(batch)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights, seen, loader, device


def replay(seen, make, samples: int = SAMPLES) -> torch.Tensor:
    """The same batches in a plain loop, with all the memory there is."""
    model, data = network(), Numbered(samples)
    optimizer = make(model.parameters())
    for batch in (batch for epoch in seen for batch in epoch):
        optimizer.zero_grad()
        loss_of(model, (data.x[batch], data.y[batch], batch)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sgd(parameters):
    return SGD(parameters, 0.05, momentum=0.9)


def adamw(parameters):
    return AdamW(parameters, 1e-3)


@pytest.mark.parametrize("block", range(10))
def test_two_hundred_times_out_of_memory_anywhere(memory, block, monkeypatch):
    hit = dict.fromkeys(PLACES, 0)
    for seed in range(20 * block, 20 * (block + 1)):
        draw = random.Random(seed)
        place, make = PLACES[seed % len(PLACES)], draw.choice([sgd, adamw])
        most = {"probe": 2, "growth": 3, "measurement": 4}.get(place, 16)
        tight = SimulatedMemory(draw.randint(80, 160) * PER_SAMPLE)  # so that growth is tried before it is done
        with monkeypatch.context() as patch:
            patch.setattr(training_run, "memory_of", lambda *_, tight=tight: tight)
            faults = Faults(place, draw.randint(1, most), patch)
            weights, seen, loader, _ = train(tight, make, faults, samples=FEW, overhead=0.9)
        hit[place] += faults.raised
        for epoch in seen:
            assert sorted(index for batch in epoch for index in batch) == list(range(FEW)), seed
        torch.testing.assert_close(weights, replay(seen, make, FEW), rtol=1e-8, atol=1e-10)
        events = loader.history.to_dict()["event"]
        if place in ("forward", "backward", "growth") and faults.raised:
            assert "out of memory" in events, seed
    assert sum(hit.values()) >= 15, hit
    assert all(hit.values()), hit


def test_a_batch_that_does_not_fit_is_run_in_halves_and_the_next_are_cut_smaller(memory):
    memory.capacity = 40 * PER_SAMPLE
    weights, seen, loader, device = train(
        memory, adamw, target=lambda *_: 128, overhead=0, decide_every=0.2, step_time=(1.0, 0.0)
    )  # (the memory is not asked, so the run is let go on into it)
    sizes = [len(batch) for epoch in seen for batch in epoch]
    first = device.rows.index(32)  # none of 33 to 128 samples before
    assert 128 in sizes and device.rows[first : first + 4] == [32] * 4
    assert max(device.rows[: first + 4]) == 32 and max(device.rows) == 40, "later the gap is halved"
    after = sizes[sizes.index(128) + 1 :]
    assert max(after) <= 63, "twice as many would not have fitted"
    torch.testing.assert_close(weights, replay(seen, adamw), rtol=1e-8, atol=1e-10)
    record = next(record for record in loader.history.records if record["event"] == "out of memory")
    assert (record["reason"], record["batch_size"]) == ("memory", 32)


def test_growth_is_tried_before_it_is_done(memory):
    memory.capacity = 100 * PER_SAMPLE
    _, seen, loader, _ = train(memory, adamw, target=lambda *_: 128)
    sizes = [len(batch) for epoch in seen for batch in epoch]
    assert 86 <= max(sizes) <= 90, "nine tenths of what the device holds"
    assert "out of memory" not in loader.history.to_dict()["event"]
    assert "memory" in loader.history.decisions()["reason"]
    assert memory.in_use() <= 128 * PER_SAMPLE


@pytest.mark.parametrize("capacity", [100, 1_000])
def test_what_an_earlier_run_took_does_not_hold_this_one_back(memory, capacity):
    memory.capacity = capacity * PER_SAMPLE
    memory.take(0.95 * memory.capacity)  # the statistic of a process that has trained something else before
    memory.give_back(0.95 * memory.capacity)
    assert memory.peak() > memory.limit()
    _, seen, loader, device = train(memory, adamw, target=lambda *_: 128)
    largest = max(len(batch) for epoch in seen for batch in epoch)
    assert 86 <= largest <= 90 if capacity == 100 else largest == 128
    assert "out of memory" not in loader.history.to_dict()["event"]
    of_two_epochs = 2 * SAMPLES / 8
    assert len(device.rows) < 2 * of_two_epochs, "trials are few, however long the wish stays"


def test_a_plain_loop_is_spared_too(memory):
    memory.capacity = 100 * PER_SAMPLE
    model = network()
    optimizer = adamw(model.parameters())
    OnDevice(model, memory, PER_SAMPLE)
    loader = AdaptiveDataLoader(
        Numbered(SAMPLES), START, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=2,
        target=lambda *_: 128, max_batch_size=128,
    )  # fmt: skip
    sizes = []
    for _ in range(2):
        for batch in loader:
            sizes.append(len(batch[0]))
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    assert 86 <= max(sizes) <= 90


def test_past_the_cap_if_asked(memory):
    memory.capacity = 40 * PER_SAMPLE
    weights, seen, loader, device = train(memory, adamw, target=lambda *_: 128, exceed_memory=True)
    sizes = [len(batch) for epoch in seen for batch in epoch]
    assert max(sizes) == 128
    assert max(device.rows[-20:]) <= 36
    torch.testing.assert_close(weights, replay(seen, adamw), rtol=1e-8, atol=1e-10)
    assert "out of memory" not in loader.history.to_dict()["event"]


def test_nobody_exceeds_memory_in_a_loop_that_takes_its_own_steps(memory):
    memory.capacity = 40 * PER_SAMPLE
    model = network()
    optimizer = adamw(model.parameters())
    OnDevice(model, memory, PER_SAMPLE)
    loader = AdaptiveDataLoader(
        Numbered(SAMPLES), START, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=1,
        target=lambda *_: 128, exceed_memory=True,
    )  # fmt: skip
    for batch in loader:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert loader.batch_size <= 36


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_every_kind_add_up(memory, reduction):
    """Targets to be ignored and classes that weigh more: the mean of a half is not half of the mean."""
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    y[:20] = -100
    grads, losses = [], []
    for capacity in (1000, 20):
        memory.capacity = capacity * PER_SAMPLE
        torch.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = SGD(model.parameters(), 0.0)
        OnDevice(model, memory, PER_SAMPLE)
        loss_func = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2]), reduction=reduction)
        loader = AdaptiveDataLoader(
            torch.utils.data.TensorDataset(x, y), 64, model=model, optimizer=optimizer, loss_func=loss_func, epochs=1,
            overhead=0, step_time=(1.0, 0.0),
        )  # fmt: skip
        kept = []
        for batch in loader:
            keep = lambda kept=kept, model=model: kept.extend(p.grad.clone() for p in model.parameters())  # noqa: E731
            losses.append(loader.step(batch, before_step=keep))
        grads.append(kept)
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(losses[0], losses[1])


def test_batch_norm_sees_a_batch_once(memory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    memory.capacity = 40 * PER_SAMPLE
    OnDevice(model, memory, PER_SAMPLE)
    optimizer = SGD(model.parameters(), 0.1)
    loader = AdaptiveDataLoader(
        Numbered(64), 64, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=1, step_time=(1.0, 0.0),
        overhead=0,
    )  # fmt: skip
    for batch in loader:
        loader.step(batch)
    assert model[1].num_batches_tracked == 2, "the pass that ran out has left nothing, its two halves have"


def test_accumulated_batches_are_divided_as_the_loop_would(memory):
    model, other = network(), network()
    optimizer, plain = sgd(model.parameters()), sgd(other.parameters())
    loader = AdaptiveDataLoader(
        Numbered(64), 8, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=1, accumulation_steps=4,
        overhead=0, max_batch_size=8,
    )  # fmt: skip
    for i, batch in enumerate(loader, 1):
        (loss_of(other, batch) / 4).backward()
        loss = loader.step(batch)
        if i < 4:
            torch.testing.assert_close(loss, loss_of(other, batch).detach())
        if i % 4 == 0:
            plain.step()
            plain.zero_grad()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_sample_that_does_not_fit_is_the_devices_error(memory):
    memory.capacity = PER_SAMPLE // 2
    model = network()
    OnDevice(model, memory, PER_SAMPLE)
    loader = AdaptiveDataLoader(
        Numbered(64), 8, model=model, optimizer=sgd(model.parameters()), batch_loss=loss_of, epochs=1, overhead=0
    )
    with pytest.raises(torch.OutOfMemoryError):
        for batch in loader:
            loader.step(batch)
    assert all(p.grad is None for p in model.parameters())


def test_without_a_loss_there_is_no_step():
    model = network()
    loader = AdaptiveDataLoader(Numbered(64), 8, model=model, optimizer=sgd(model.parameters()), epochs=1, overhead=0)
    batch = next(iter(loader))
    with pytest.raises(ValueError, match="give loss_func= or batch_loss="):
        loader.step(batch)


def test_what_ran_out_is_remembered_by_a_checkpoint():
    cap = MemoryLimit()
    cap.ran(64)
    cap.fails(128)
    other = MemoryLimit()
    other.load_state_dict(cap.state_dict())
    assert (other.smallest_failed, other.largest_run, other.piece) == (128, 64, 127)
    assert other.find_largest(200) == 96


@pytest.mark.parametrize("step_time", [None, (1.0, 0.0)])
@pytest.mark.parametrize("fails_from", [100, 130, 200])
def test_a_target_that_keeps_asking_is_refused_after_few_errors(memory, fails_from, step_time):
    """The memory seems to have room for all, and the device fails from some size on."""
    memory.capacity = 10**9
    model = network()
    optimizer = adamw(model.parameters())
    device, errors = OnDevice(model, memory, PER_SAMPLE), []

    def fail(where):
        if device.rows[-1] >= fails_from:
            errors.append(device.rows[-1])
            raise torch.OutOfMemoryError("CUDA out of memory.")

    device.fail = fail
    loader = AdaptiveDataLoader(
        Numbered(4000), START, shuffle=True, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=6,
        target=lambda *_: 512, max_batch_size=512, lr_scaling="none", decide_every=0.02, overhead=0,
        step_time=step_time,
    )  # fmt: skip
    for _ in range(6):
        for batch in loader:
            loader.step(batch)
    if step_time is None:  # each size is tried before it is run, and trials are no batches that have to be halved
        assert errors[0] == 512 and len(errors) <= 4 and len(errors) == len(set(errors))
        assert 0.7 * fails_from <= loader.batch_size < fails_from
    else:
        halved = [512, 256, 128][: 1 + (fails_from <= 256) + (fails_from <= 128)]
        assert errors[: len(halved)] == halved
        assert len(errors) <= len(halved) + 3
        assert loader.batch_size == {100: 96, 130: 128, 200: 192}[fails_from]
    assert max(device.rows[-20:]) == loader.batch_size, "it runs in one go"
