"""What only a CUDA device can show; `pytest -m cuda` on a machine that has one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.run.controller import Controller
from adaptbs.timing.device_clock import DeviceClock
from benchmarks.common.per_example import PerExample
from tests.helpers.readings import FIRST

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

loss_func = nn.functional.mse_loss


def data(n: int = 4096) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 32, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True) + 3 * torch.randn(n, 1, generator=generator))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 1)).cuda()


def train(loader, model, optimizer, epochs: int = 3) -> torch.Tensor:
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss_func(model(x.cuda()), y.cuda()).backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_measuring_leaves_training_as_it_was():
    weights = []
    for adaptive in (False, True):
        model = network()
        optimizer = AdamW(model.parameters(), 1e-3)
        loader = (
            AdaptiveDataLoader(
                data(), 64, shuffle=True, model=model, optimizer=optimizer,
                epochs=3, max_batch_size=64, overhead=0.2,
            )
            if adaptive
            else DataLoader(data(), 64, shuffle=True)
        )  # fmt: skip
        torch.manual_seed(1)
        weights.append(train(loader, model, optimizer))
    assert torch.equal(*weights)


def test_it_grows_and_times_its_steps_by_events():
    model = network()
    optimizer = AdamW(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(data(), 16, shuffle=True, model=model, optimizer=optimizer, epochs=3, overhead=0.2)
    train(loader, model, optimizer)
    assert loader.batch_size > 16
    assert loader.noise_scale.trace > 0


@pytest.mark.parametrize("kind", [HalfBatches, PerExample])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_measurement_waits_for_nothing(kind, dtype):
    model = network()
    autocast = (lambda: torch.autocast("cuda", dtype)) if dtype else None
    source = kind(model, BatchLoss(nn.MSELoss(), autocast=autocast))
    batch = [t.cuda() for t in data()[:64]]
    source.measure(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = source.measure(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norms.small.is_cuda


def test_between_decisions_nothing_waits_for_the_device(monkeypatch):
    model = network()
    optimizer = AdamW(model.parameters(), 1e-3, fused=True)
    on_device = TensorDataset(*(t.cuda() for t in data().tensors))
    loader = AdaptiveDataLoader(
        on_device, 32, shuffle=True, model=model, optimizer=optimizer,
        epochs=4, max_batch_size=32, overhead=0.5, decide_every=0.1,
    )  # fmt: skip
    decided, under_way = [], []

    def may_wait(method):
        def waiting(*args, **kwargs):
            torch.cuda.set_sync_debug_mode("default")
            under_way.append(method.__name__)
            try:
                return method(*args, **kwargs)
            finally:
                decided.append(under_way.pop())
                torch.cuda.set_sync_debug_mode("error" if len(decided) > FIRST and not under_way else "default")

        return waiting

    # The first measurements compare each parameter's terms with its gradient, and wait for the result. Later nothing
    # may wait but a reading or a decision.
    for name in ("_take_in", "_decide"):
        monkeypatch.setattr(Controller, name, may_wait(getattr(Controller, name)))
    try:
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss_func(model(x), y).backward()
                optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(decided) >= 5
    assert loader.history.to_dict()["event"].count("measurement") > 30


def test_events_time_the_device_not_the_queue():
    clock = DeviceClock(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    clock.start()
    for _ in range(20):
        a = (a @ a).tanh()
    clock.step(1)
    ((_, queued),) = clock.read().steps
    assert queued > 0.5 * 20 * 2 * 4096**3 / 2e15  # no device does 2,000 teraflops
