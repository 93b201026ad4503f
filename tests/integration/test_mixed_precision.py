"""Loops in half precision, with clipping and weight decay: training does not notice, and measurements see neither."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find
from adaptbs.model import has_batch_norm
from tests.oracle import brute

START, EPOCHS = 16, 4
mse_loss = nn.functional.mse_loss


def data(n: int = 170) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 8, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True) + torch.randn(n, 1, generator=generator))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def awkward() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def float16():
    return torch.autocast("cpu", torch.float16)


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def measuring(model, optimizer, batch_size: int = START, **arguments) -> AdaptiveDataLoader:
    """A loader that measures every step it can, and keeps its size."""
    often = {"overhead": 0.9, "step_time": (1.0, 0.0)}
    if has_batch_norm(model):
        often["loss_func"] = mse_loss
    arguments = {"max_batch_size": batch_size, "epochs": EPOCHS, **often, **arguments}
    return AdaptiveDataLoader(data(), batch_size, shuffle=True, model=model, optimizer=optimizer, **arguments)


def scaled_training(model, optimizer, loader, scaler) -> tuple[list[float], list[bool]]:
    """The loop of torch's documentation, gradients clipped; the LR seen by it, and whether each step was taken."""
    lrs, taken = [], []
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            with float16():
                loss = mse_loss(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            taken.append(scaler.get_scale() >= before)
    return lrs, taken


@pytest.mark.parametrize("make", [plain, awkward])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_training_with_a_grad_scaler_does_not_notice(kind, fused, make):
    weights, scales, loaders = [], [], []
    for how in ("stock", "measuring"):
        model = make()
        optimizer = kind(model.parameters(), 1e-2, weight_decay=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=10)
        stock = DataLoader(data(), START, shuffle=True)
        loaders.append(stock if how == "stock" else measuring(model, optimizer, autocast=float16))
        torch.manual_seed(1)
        _, taken = scaled_training(model, optimizer, loaders[-1], scaler)
        assert any(taken), "every step overflowed"
        assert not all(taken), "no step overflowed"
        weights.append([v.clone() for v in model.state_dict().values()])
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1]
    assert all(map(torch.equal, *weights))
    assert loaders[1].noise_scale.trace > 0


@pytest.mark.parametrize("fused", [False, True])
def test_the_learning_rate_survives_a_step_that_overflows(fused):
    model = plain()
    optimizer = SGD(model.parameters(), 1e-2, fused=fused)
    target = {"target": lambda noise_scale, batch_size, progress: 2 * batch_size}
    doubled = {**target, "max_batch_size": 64, "lr_scaling": "linear"}
    loader = measuring(model, optimizer, autocast=float16, **doubled)
    used = []
    optimizer.register_step_pre_hook(lambda *_: used.append(float(optimizer.param_groups[0]["lr"])))
    # It grows back to where steps overflow time and again, also once the batch has grown.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1)
    lrs, taken = scaled_training(model, optimizer, loader, scaler)
    assert loader.batch_size == 64
    assert False in taken[-10:]
    assert set(lrs) == {1e-2}
    assert max(used) == pytest.approx(4e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_does_not_count_as_accumulated(fused):
    model = plain()
    optimizer = AdamW(model.parameters(), 1e-2, fused=fused)
    doubled = {"target": lambda noise_scale, batch_size, progress: 2 * batch_size, "max_batch_size": 64}
    loader = measuring(model, optimizer, autocast=float16, **doubled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1)
    roots = []  # of k: its square root is the learning rate's factor

    def watched():
        for batch in loader:
            roots.append(loader.lr_factor)
            yield batch

    class Epochs:
        def __iter__(self):
            return watched()

    _, taken = scaled_training(model, optimizer, Epochs(), scaler)
    counted = loader._session.step_hook.scaler
    counted.count_steps()
    ((steps, first, second, *_),) = counted.state_dict()["accumulated"]
    assert steps == sum(taken) < len(taken)
    assert False in taken[-10:]
    made = [root for root, counts in zip(roots, taken, strict=True) if counts]
    assert (first, second) == pytest.approx((sum(root**0.5 for root in made), sum(root**2 for root in made)))


@pytest.mark.parametrize("autocast", [None, bfloat16, float16])
@pytest.mark.parametrize("make", [plain, awkward], ids=["per example", "halves"])
def test_a_measurement_sees_neither_clipping_nor_weight_decay(make, autocast):
    model = make()
    for module in model.modules():
        module.p = 0.0  # no dropout: its masks would differ from those of the slow way
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.5)
    loader = measuring(model, optimizer, autocast=autocast)
    slow = brute.per_example if make is plain else brute.halves
    expected, samples = {}, 0
    for _ in range(EPOCHS):
        for x, y in loader:
            samples += len(x)
            n = len(x) if make is plain else len(x) // 2 * 2
            expected[samples] = len(x), slow(model, lambda m, b: mse_loss(m(b[0]), b[1]), (x, y), n)
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    measured = [record for record in loader.history.records if record["event"] == "measurement"]
    records = [record for record in measured if record["doubt"] != "not finite"]  # float16's scale was too large there
    assert len(records) > max(10, 0.8 * len(measured))
    for record in records:
        n, (small, large) = expected[record["samples"]]
        b, B = (1, n) if make is plain else (n // 2, n // 2 * 2)
        tolerance = 1e-4 if autocast is None else 0.02
        assert record["batch_size"] == B
        grad_sq, trace = record["grad_sq"], record["trace"]
        found = grad_sq + trace / b, grad_sq + trace / B
        assert found == pytest.approx((small, large), rel=tolerance, abs=0.01 * tolerance * small)


def test_the_finder_leaves_out_what_overflows(monkeypatch):
    found = []
    for autocast, start in ((None, 1.0), (float16, 1.0), (float16, 2.0**20)):
        monkeypatch.setattr("adaptbs.gradients.loss_scale.START", start)
        torch.manual_seed(1)
        loader = DataLoader(data(1700), START, shuffle=True)
        found.append(bs_find(plain(), mse_loss, loader, n_batch=20, autocast=autocast))
    exact, scaled, overflowed = (f.noise_scale for f in found)
    assert scaled == pytest.approx(exact, rel=0.02)
    assert overflowed == pytest.approx(exact, rel=0.2), "some of its batches are missing"
    assert overflowed != scaled


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [161, 162, 163])
def test_a_last_batch_too_short_to_measure_is_delivered_all_the_same(n, drop_last):
    model = plain()
    optimizer = SGD(model.parameters(), 0.01)
    rows = TensorDataset(*(t[:n] for t in data().tensors))
    loader = AdaptiveDataLoader(
        rows, START, model=model, optimizer=optimizer, loss_func=mse_loss, epochs=1, overhead=0.9,
        source="halves", step_time=(1.0, 0.0), max_batch_size=START, drop_last=drop_last,
    )  # fmt: skip
    assert [len(x) for x, _ in loader] == [START] * 10 + ([] if drop_last else [n - 160])
