"""Weighted and ignored targets, padding, dropout: pooled measurements against the variance of brute batch gradients.

A sample is a row of the batch, whatever its weight: the noise of a batch of b rows is tr Cov(G_b) = tr(Sigma)/b.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.window import MeasurementWindow
from benchmarks.common.per_example import PerExample
from tests.oracle import brute
from tests.problems import exact

ROWS, BATCH, MEASUREMENTS = 120, 64, 200
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def classes():
    """Rows (x, class), the class hard to tell, so that the noise is far above the gradient."""
    x = torch.randn(ROWS, 6, generator=generator(1))
    return x, (x[:, 0] + torch.randn(ROWS, generator=generator(2))).clamp(-1.4, 1.4).round().long() + 1


def with_ignored():
    x, y = classes()
    return x, torch.where(torch.rand(ROWS, generator=generator(3)) < 0.4, -100, y)


def padded_sequences():
    """Rows of 1 to 7 positions, each of which has a target; the rest is padding, whose target is ignored."""
    x = torch.randn(ROWS, 7, 6, generator=generator(4))
    y = (x[..., 0] + torch.randn(ROWS, 7, generator=generator(5))).clamp(-1.4, 1.4).round().long() + 1
    lengths = torch.randint(1, 8, (ROWS, 1), generator=generator(6))
    return x, y.where(torch.arange(7) < lengths, -100)


def cross_entropy(model, batch, weight=None):
    logits = model(batch[0])
    weight = None if weight is None else weight.to(logits.dtype)
    return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten(), weight)


def class_weights(y):
    return WEIGHTS[y]


def targets(y):
    return (y != -100).reshape(len(y), -1).sum(1)


# name: rows, loss, weight of each row
CASES = {
    "class weights": (classes, partial(cross_entropy, weight=WEIGHTS), class_weights),
    "ignored targets": (with_ignored, cross_entropy, targets),
    "padded sequences": (padded_sequences, cross_entropy, targets),
}


def of_drawn_rows(gradients: Tensor, weights: Tensor, size: int) -> tuple[float, float]:
    """(b tr Cov(G_b), |E G_b|^2) of batches of b rows drawn at random, each with its rows' weighted mean gradient."""
    drawn = torch.randint(0, ROWS, (10_000, size), generator=generator(7))
    counts = torch.zeros(len(drawn), ROWS, dtype=torch.double).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    means = (counts * weights) @ gradients / (counts @ weights)[:, None]
    return size * means.var(0).sum().item(), means.mean(0).square().sum().item()


def pooled(source, model, loss, data) -> tuple[float, float]:
    """(trace, grad_sq), means over many measured batches of rows drawn at random."""
    measure, chance, norms = source(model, BatchLoss(batch_loss=loss)).measure, generator(8), []
    for i in range(MEASUREMENTS):
        rows = torch.randint(0, ROWS, (BATCH,), generator=chance)
        torch.manual_seed(i)  # other dropout: a measurement gives the random state back
        norms.append(measure(tuple(t[rows] for t in data)))
    return tuple(sum(float(getattr(n, name)) for n in norms) / len(norms) for name in ("trace", "grad_sq"))


@pytest.fixture(params=CASES)
def case(request):
    """Model, loss, data, and each row's own gradient (0 where it has no target) and weight."""
    data, loss, weigh = CASES[request.param]
    data, model = data(), mlp()
    return model, loss, data, brute.rows(model, loss, data, ROWS).nan_to_num(), weigh(data[1]).double()


def test_halves_measure_what_a_batch_of_weighted_rows_varies_by(case):
    model, loss, data, gradients, weights = case
    trace, grad_sq = pooled(HalfBatches, model, loss, data)
    assert (trace, grad_sq) == pytest.approx(of_drawn_rows(gradients, weights, BATCH // 2), rel=0.04)
    # In a large batch a weighted row counts as if its gradient were w (g - G)/mean(w) + G.
    mean = (weights[:, None] * gradients).sum(0) / weights.sum()
    effective = weights[:, None] * (gradients - mean) / weights.mean()
    assert trace == pytest.approx(effective.square().sum(1).mean().item(), rel=0.05)


def test_per_example_is_off_by_some_samples_for_the_variance_of_the_weights(case):
    model, loss, data, gradients, weights = case
    trace, grad_sq = pooled(PerExample, model, loss, data)
    expected, expected_grad_sq = of_drawn_rows(gradients, weights, BATCH)
    weights = weights / weights.mean()
    mean = (weights[:, None] * gradients).mean(0)
    in_common = 2 * (weights.square() * ((gradients - mean) @ mean)).mean()
    error = (weights.var() * mean.square().sum() + in_common).item()
    assert grad_sq == pytest.approx(expected_grad_sq - error / BATCH, rel=0.05)
    assert trace == pytest.approx(expected + error, rel=0.03)
    variation, scale = weights.std().item(), expected / expected_grad_sq
    assert error / expected_grad_sq < variation**2 + 2 * variation * scale**0.5, "what the documentation says"


@pytest.mark.parametrize("source", [HalfBatches, PerExample])
def test_summed_rows_are_samples_whatever_their_weight(source):
    # sum_i w_i l_i has no normaliser that varies: a row's gradient is w_i g_i, and 0 where its target is ignored.
    (x, y), model, n = with_ignored(), mlp(), 32
    loss_func = nn.CrossEntropyLoss(WEIGHTS, reduction="sum")
    gradients = brute.rows(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), (x[:n], y[:n]), n)
    gradients *= WEIGHTS[y[:n].clamp(min=0)][:, None]
    norms = source(model, BatchLoss(loss_func)).measure((x[:n], y[:n]))
    small = gradients if source is PerExample else torch.stack([h.mean(0) for h in gradients.chunk(2)])
    assert float(norms.small) == pytest.approx(small.square().sum(1).mean().item(), rel=1e-5)
    assert float(norms.large) == pytest.approx(gradients.mean(0).square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("source", [HalfBatches, PerExample])
def test_where_every_target_is_ignored_nothing_is_measured_and_nothing_raised(source):
    x, y = torch.randn(8, 6), torch.tensor([-100] * 4 + [0, 1, 2, 0])
    measure, window = source(mlp(), BatchLoss(batch_loss=cross_entropy)).measure, MeasurementWindow(1000)
    if source is HalfBatches:
        window.add(1, measure((x, y)))  # half of it
    window.add(2, measure((x, torch.full((8,), -100))))
    window.add(3, measure((x, y.roll(2))))
    assert [samples for samples, _ in window.read()] == [3]


def test_dropout_is_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    data = classes()

    def one(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    per_row = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")
    many = tuple(t.repeat_interleave(200, 0) for t in data)  # masks a row
    gradients = torch.cat([g.flatten(1) for g in per_row(parameters, *many).values()], 1)
    expected = exact(gradients.double())
    for source in (HalfBatches, PerExample):
        assert pooled(source, model, cross_entropy, data) == pytest.approx(expected, rel=0.05)
    undropped = exact(brute.rows(model.eval(), cross_entropy, data, ROWS))
    assert expected[0] > 1.3 * undropped[0], "without its dropout this model would measure the same"
