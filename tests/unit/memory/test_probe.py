"""Real steps of real models, on a device whose memory is simulated."""

import copy
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adaptbs
from adaptbs import probe_memory
from adaptbs.gradients.halves import TEMPORARY
from adaptbs.gradients.meter import NoiseMeter
from adaptbs.memory import probe
from adaptbs.memory.trial import MemoryTrial, try_size
from adaptbs.model.batch_loss import BatchLoss
from tests.helpers.seen import Seen
from tests.simulated_device import OnDevice, SimulatedMemory

MSE = BatchLoss(nn.MSELoss())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def loader(n: int = 4096, batch_size: int = 64) -> DataLoader:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size, shuffle=True)


@pytest.fixture
def memory(monkeypatch) -> SimulatedMemory:
    simulated = SimulatedMemory(10_000_000)
    monkeypatch.setattr(probe, "memory_of", lambda devices: simulated)
    return simulated


def everything(model, optimizer) -> dict:
    return copy.deepcopy({
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "grads": [p.grad for p in model.parameters()], "modes": [m.training for m in model.modules()],
        "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1], "python": random.getstate(),
    })  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, 0.1),
    lambda p: torch.optim.RMSprop(p, 0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_it_finds_the_largest_that_fits_and_leaves_no_trace(memory, make, steps):
    model = network()
    optimizer, data = make(model.parameters()), loader()
    for _ in range(steps):  # also where the optimizer has no state yet
        nn.MSELoss()(model(torch.randn(8, 4)), torch.randn(8, 1)).backward()
        optimizer.step()
    OnDevice(model, memory, per_sample=4_000, fixed=1_000_000)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    before, state = everything(model, optimizer), dict(optimizer.state)
    found = probe_memory(model, nn.MSELoss(), data, optimizer=optimizer)
    assert same(everything(model, optimizer), before)
    assert state.keys() == optimizer.state.keys()
    assert not calls, "a scheduler that hangs on the optimizer's steps has seen none"
    truth = (0.9 * 10_000_000 - 1_000_000) / 4_000
    assert 0.98 * truth <= found.batch_size <= truth
    assert found.batch_size in {trial.batch_size for trial in found.trials}
    assert f"fits: {found.batch_size}" in str(found)


def test_the_loader_delivers_what_it_would_have(memory):
    model, data = network(), loader()
    torch.manual_seed(3)
    expected = next(iter(data))
    torch.manual_seed(3)
    OnDevice(model, memory, per_sample=4_000)
    probe_memory(model, nn.MSELoss(), data)
    assert same(next(iter(data)), expected)


def test_a_probe_that_dies_leaves_no_trace_either(memory):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())

    class Broken(torch.optim.AdamW):
        def step(self, closure=None):
            super().step()
            raise KeyboardInterrupt

    broken = Broken(model.parameters())
    before = everything(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        probe_memory(model, nn.MSELoss(), loader(), optimizer=broken)
    assert same(everything(model, optimizer), before)
    assert not broken.state


def test_it_is_not_stopped_by_a_size_that_runs_out(memory):
    model = network()
    OnDevice(model, memory, per_sample=4_000)
    found = probe_memory(model, nn.MSELoss(), loader(8192, 4096))
    assert found.trials[0].peak is None
    assert "ran out of memory" in str(found)
    assert 2200 <= found.batch_size <= 2250
    assert memory.released == 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_may_run_out_anywhere(memory, where):
    model = network()

    def fail(place: str) -> None:
        if place == where and device.rows[-1] > 100:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    device = OnDevice(model, memory, per_sample=4_000, fail=fail)
    assert 60 <= probe_memory(model, nn.MSELoss(), loader()).batch_size <= 100


def test_another_error_is_the_users(memory):
    def broken(model, batch):
        raise ValueError("of the user's")

    with pytest.raises(ValueError, match="of the user's"):
        probe_memory(network(), None, loader(), batch_loss=broken)


def test_the_largest_samples_seen_are_tried(memory):
    texts = [(torch.zeros(8, length, 4), torch.zeros(8, length, 1)) for length in (3, 9, 5)]
    model = nn.Linear(4, 1)
    shapes = Seen()
    model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    probe_memory(model, nn.MSELoss(), texts, max_batch_size=16)
    assert {shape[1] for shape in shapes} == {9}
    assert {shape[0] for shape in shapes} == {8, 16}


def test_an_allocator_that_thrashes_is_full(memory, monkeypatch):
    model = network()
    OnDevice(model, memory, per_sample=4_000)
    plain = memory.watched

    def watched():
        @contextmanager
        def noticing():
            with plain() as seen:
                yield seen
            seen.thrashed = seen.peak > 1_000_000

        return noticing()

    monkeypatch.setattr(memory, "watched", watched)
    assert probe_memory(model, nn.MSELoss(), loader()).batch_size <= 250


def test_an_allocator_that_lets_smaller_blocks_go_once_is_not_full(memory, monkeypatch):
    """As CUDA's does at every new size that what is kept of the sizes before leaves no room for."""
    model = network()
    device, plain, known = OnDevice(model, memory, per_sample=4_000), memory.watched, set()

    @contextmanager
    def noticing():
        passes = len(device.rows)
        with plain() as seen:
            yield seen
        if len(device.rows) > passes:
            seen.thrashed = device.rows[-1] not in known
            known.add(device.rows[-1])

    monkeypatch.setattr(memory, "watched", noticing)
    found = probe_memory(model, nn.MSELoss(), loader())
    assert all(trial.peak is not None for trial in found.trials)
    assert 2200 <= found.batch_size <= 2250


def test_what_measuring_holds_is_counted(memory):
    model = network()
    batch = (torch.randn(8, 4), torch.randn(8, 1))
    plain = try_size(model, MSE, batch, 16, memory)
    sizes = [p.numel() * 4 for p in model.parameters()]
    for choice, more in (("halves", sum(sizes) + TEMPORARY * max(sizes)), ("in_step", 0)):
        meter = NoiseMeter(model, MSE, choice=choice)
        trial = MemoryTrial(model, MSE, memory, lambda: batch, measures=lambda meter=meter: meter)
        assert trial(16).peak == plain.peak + more
    trial = MemoryTrial(model, MSE, memory, lambda: batch, measures=lambda: None)
    assert trial(16).peak == plain.peak
    trial = MemoryTrial(model, MSE, memory, lambda: batch, measures=lambda: None, accumulates=True)
    assert trial(16).peak == plain.peak + sum(sizes), "a step's later passes begin with the gradient of the earlier"


def test_a_run_that_is_measured_in_its_steps_tries_a_step_as_it_is_when_measured(memory, monkeypatch):
    hooked = Seen()

    def loss(model, batch):
        hooked.append(sum(len(m._forward_hooks) for m in model.modules()))
        return model(batch[0]).square().mean()

    model, batch = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), (torch.randn(8, 4), torch.randn(8, 1))
    MemoryTrial(model, BatchLoss(batch_loss=loss), memory, lambda: batch, measures=lambda: NoiseMeter(model, None))(16)
    assert set(hooked) == {2}, "one on each layer"
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"loader": []}, ValueError, "no batch"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size=0"),
        ({"loss_func": None}, ValueError, "give either loss_func="),
    ],
)
def test_misuse(memory, arguments, error, says):
    arguments = {"loss_func": nn.MSELoss(), "loader": loader()} | arguments
    with pytest.raises(error, match=says):
        probe_memory(network(), arguments.pop("loss_func"), arguments.pop("loader"), **arguments)


def test_a_device_that_cannot_be_asked_is_an_error():
    with pytest.raises(ValueError, match="model: the memory of meta cannot be read") as raised:
        probe_memory(nn.Linear(4, 1, device="meta"), nn.MSELoss(), loader())
    assert "MPS" not in str(raised.value), "its memory cannot be read either"


class Scaled(torch.optim.SGD):
    """An optimizer with a setting beside its groups."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.scale = 2.0

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.1 * self.scale
        return super().step(closure)


def test_an_optimizer_that_needs_a_setting_of_its_class_takes_its_steps(memory):
    model = network()
    optimizer = Scaled(model.parameters())
    found = probe_memory(model, nn.MSELoss(), loader(), optimizer=optimizer, max_batch_size=16)
    assert found.batch_size == 16
    assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state, "it is left as it was"


def test_the_host_is_probed_with_care():
    found = adaptbs.probe_memory(network(), nn.MSELoss(), loader(), max_batch_size=256)
    assert found.batch_size == 256


def test_a_frozen_layer_with_a_gradient_left_over_stays_as_it_is(memory):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nn.MSELoss()(model(torch.randn(8, 4)), torch.randn(8, 1)).backward()
    model[0].requires_grad_(False)
    before = everything(model, optimizer)
    probe_memory(model, nn.MSELoss(), loader(), optimizer=optimizer, max_batch_size=128)
    assert same(everything(model, optimizer), before)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"loader": loader().dataset}, TypeError, "loader= is a dataset"),
        ({"loss_func": nn.MSELoss}, TypeError, "MSELoss is a class"),
        ({"loss_func": lambda p, y: nn.functional.mse_loss(p.detach(), y)}, ValueError, "depends on no trainable"),
    ],
)
def test_what_gives_no_batch_or_no_gradient_is_refused(changed, error, words, memory):
    with pytest.raises(error, match=words):
        probe_memory(network(), **{"loss_func": nn.MSELoss(), "loader": loader(), **changed})


def test_an_optimizer_that_calls_the_loss_itself_is_refused(memory):
    model = network()
    with pytest.raises(TypeError, match=r"LBFGS.*closure.*leave optimizer= out"):
        probe_memory(model, nn.MSELoss(), loader(), optimizer=torch.optim.LBFGS(model.parameters()))
