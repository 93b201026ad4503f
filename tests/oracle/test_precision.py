"""Norms measured in half precision against double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.loss_scale import BACK_OFF, GROW_AFTER, START, LossScale
from adaptbs.gradients.mean_gradient import MeanGradient, squared_norm
from adaptbs.model.batch_loss import BatchLoss
from benchmarks.common.per_example import PerExample
from tests.helpers.seen import Seen
from tests.oracle import brute

SOURCES = [(HalfBatches, brute.halves), (PerExample, brute.per_example)]
N = 32


class Tokens(nn.Module):
    """Every kind of layer that is measured per example, but convolutions, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.norm = nn.Embedding(20, 16), nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.norm(torch.relu(self.hidden(self.embedding(tokens)))).mean(1))


def problem(seed: int = 0):
    torch.manual_seed(seed)
    return Tokens(), (torch.randint(0, 20, (N, 7)), torch.randint(0, 3, (N,)))


def loss_of(factor: float = 1.0):
    """Cross-entropy made small: its gradients are `factor` times as large."""
    return lambda model, batch: factor * nn.functional.cross_entropy(model(batch[0]), batch[1])


def small_gradients(model, batch):
    """Linear in the output, so that not even the loss's own gradient is a number that float16 knows."""
    return 1e-7 * (model(batch[0]) * (1 + nn.functional.one_hot(batch[1], 3))).sum(1).mean()


def float16():
    return torch.autocast("cpu", torch.float16)


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def measured(source, model, loss, batch, autocast=None):
    norms = source(model, BatchLoss(batch_loss=loss, autocast=autocast)).measure(batch)
    return float(norms.small), float(norms.large)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("source", "slow"), SOURCES)
def test_bfloat16_autocast(source, slow, seed):
    model, batch = problem(seed)
    assert measured(source, model, loss_of(), batch, bfloat16) == pytest.approx(
        slow(model, loss_of(), batch, N), rel=0.02
    )


@pytest.mark.parametrize("loss", [loss_of(), loss_of(1e-6), small_gradients], ids=["plain", "small", "linear"])
@pytest.mark.parametrize(("source", "slow"), SOURCES[:1])  # in the step a scale is the loop's own affair
def test_float16_autocast(source, slow, loss):
    model, batch = problem()
    assert measured(source, model, loss, batch, float16) == pytest.approx(slow(model, loss, batch, N), rel=0.02)


@pytest.mark.parametrize(("source", "slow"), SOURCES[:1])  # in the step a scale is the loop's own affair
def test_a_float16_model(source, slow):
    model, batch = problem()
    expected = slow(model, loss_of(1e-6), batch, N)
    model.half()
    assert measured(source, model, loss_of(1e-6), batch) == pytest.approx(expected, rel=0.02)


def test_without_a_scale_such_gradients_vanish(monkeypatch):
    # What the tests above would not notice if their gradients were large enough anyway.
    monkeypatch.setattr("adaptbs.gradients.loss_scale.START", 1.0)
    model, batch = problem()
    large = brute.halves(model, small_gradients, batch, N)[1]
    found = measured(HalfBatches, model, small_gradients, batch, float16)
    assert found[1] < 0.1 * large


@pytest.mark.parametrize("autocast", [None, float16, bfloat16])
def test_autocast_inside_the_loss_is_noticed_too(autocast):
    model, batch = problem()

    def loss(model, batch):
        with float16():
            return small_gradients(model, batch)

    assert measured(HalfBatches, model, loss, batch, autocast) == pytest.approx(
        brute.halves(model, small_gradients, batch, N), rel=0.02
    )


@pytest.mark.parametrize("autocast", [None, bfloat16])
def test_where_there_is_no_float16_nothing_is_scaled(autocast):
    # A hook that clips gradients on their way, as some recurrent models have, would clip scaled ones otherwise.
    model, batch = problem()
    seen = Seen()

    def clip(layer, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda g: seen.append(g) or g.clamp(-1, 1))

    model.norm.register_forward_hook(clip)
    source = HalfBatches(model, BatchLoss(batch_loss=loss_of(), autocast=autocast))
    source.measure(batch)
    assert max(g.abs().max() for g in seen) < 1
    assert source.mean_gradient.scale is None


@pytest.mark.parametrize(("source", "slow"), SOURCES[:1])  # in the step a scale is the loop's own affair
def test_after_an_overflow_the_next_measurement_is_good(source, slow, monkeypatch):
    monkeypatch.setattr("adaptbs.gradients.loss_scale.START", 2.0**18)
    model, batch = problem()
    loss = loss_of(30.0)
    found = source(model, BatchLoss(batch_loss=loss, autocast=float16))
    first = found.measure(batch)
    assert not math.isfinite(float(first.large))
    second = found.measure(batch)
    assert (float(second.small), float(second.large)) == pytest.approx(slow(model, loss, batch, N), rel=0.02)


def test_a_loss_that_is_not_finite_does_not_change_the_scale():
    model, batch = problem()
    loss = BatchLoss(batch_loss=lambda m, b: loss_of(b[2])(m, b), autocast=float16)
    gradient = MeanGradient(loss)
    gradient(model, (*batch, float("inf")))
    assert not squared_norm(gradient(model, (*batch, float("nan")))).isfinite()
    assert squared_norm(gradient(model, (*batch, 1.0))).isfinite()
    assert gradient.scale == START


def test_a_float16_loss_by_itself():
    # 1/n of a sum of float16 outputs is float16 too, up to and including what its gradient starts from.
    model, batch = nn.Linear(4, 1, bias=False).half(), (torch.full((8, 4), 1e-3, dtype=torch.float16),)
    norms = HalfBatches(model, BatchLoss(batch_loss=lambda m, b: m(b[0]).mean())).measure(batch)
    assert float(norms.small) == pytest.approx(4 * 1e-3**2, rel=0.01)


def test_the_scale_backs_off_and_grows_again():
    scale, device = LossScale(), torch.device("cpu")
    assert scale.on(device) == START
    scale.update(torch.tensor(True))
    assert scale.on(device) == START * BACK_OFF
    for _ in range(GROW_AFTER - 1):
        scale.update(torch.tensor(False))
    assert scale.on(device) == START * BACK_OFF
    scale.update(torch.tensor(False))
    assert scale.on(device) == START * BACK_OFF * 2


def test_the_scale_stays_a_power_of_two_within_bounds():
    scale, device = LossScale(), torch.device("cpu")
    for _ in range(20):
        scale.update(torch.tensor(True))
    assert scale.on(device) == 1
    for _ in range(40 * GROW_AFTER):
        scale.update(torch.tensor(False))
    assert scale.on(device) == 2**24
