"""Bias and coverage, with fixed seeds and stated tolerances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from adaptbs.finder.blocks import measure_block
from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.b_simple import estimate, to_floats
from adaptbs.types import NoiseScale, SquaredNorms
from benchmarks.common.per_example import PerExample
from tests.problems import Quadratic, digits, digits_mlp, exact, half_square, per_example_gradients

SEEDS = 20


def measured(model, loss_func, draw, batches: int) -> NoiseScale:
    source = HalfBatches(model, BatchLoss(loss_func))
    return estimate(to_floats([source.measure(draw()) for _ in range(batches)]))


def agree(estimates: list[NoiseScale], trace: float, noise_scale: float) -> None:
    pooled = np.mean([e.trace for e in estimates])
    assert pooled == pytest.approx(trace, rel=0.05)
    covered = sum(e.low <= noise_scale <= e.high for e in estimates)
    assert covered >= 16, f"B_simple {noise_scale:.0f} lies in [low, high] for {covered} of {len(estimates)} seeds"
    assert any(np.isfinite(e.high) for e in estimates), "an interval without end covers everything"


def test_quadratic_agrees_with_its_closed_form():
    problem = Quadratic(mean=1.0, sigma=6.0)
    estimates = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        estimates.append(measured(problem.model(), half_square, lambda g=generator: problem.batch(64, g), 40))
    agree(estimates, problem.trace, problem.noise_scale)


def test_mlp_on_digits_agrees_with_all_per_example_gradients():
    model, data = digits_mlp(), digits()
    x, y = data.tensors
    trace, grad_sq = exact(per_example_gradients(model, cross_entropy, x, y))
    estimates = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)

        def draw(generator=generator):
            chosen = torch.randint(len(x), (64,), generator=generator)  # with replacement: independent examples
            return x[chosen], y[chosen]

        estimates.append(measured(model, cross_entropy, draw, 40))
    agree(estimates, trace, trace / grad_sq)


def simulated(rng: np.random.Generator, ratio: float, n: int, size: int = 64, dimensions: int = 40):
    """n measurements of two halves of a batch, Gaussian gradients, B_simple = ratio * size; |G|^2 = 1."""
    mean = np.zeros(dimensions)
    mean[0] = 1.0
    sd = np.sqrt(ratio * size / dimensions / (size / 2))  # of one component of a half batch's gradient
    halves = mean + sd * rng.standard_normal((n, 2, dimensions))
    small = (halves**2).sum(-1).mean(-1)
    large = (halves.mean(1) ** 2).sum(-1)
    return [SquaredNorms(size // 2, float(s), size, float(v)) for s, v in zip(small, large, strict=True)]


@pytest.mark.parametrize("ratio", [1, 4, 10, 40])
def test_interval_covers_as_often_as_it_says(ratio: float):
    rng = np.random.default_rng(ratio)
    estimates = [estimate(simulated(rng, ratio, n=30), confidence=0.9) for _ in range(1000)]
    covered = np.mean([e.low <= ratio * 64 <= e.high for e in estimates])
    assert 0.86 <= covered <= 0.94
    below = np.mean([e.cautious <= ratio * 64 for e in estimates])
    assert 0.80 <= below <= 0.96  # a one-sided limit at one sigma is .84; cautious where |G|^2 is unresolved


@pytest.mark.parametrize("ratio", [1, 10])
def test_trace_and_grad_sq_are_unbiased(ratio: float):
    rng = np.random.default_rng(1)
    norms = simulated(rng, ratio, n=40_000)
    assert np.mean([n.trace for n in norms]) == pytest.approx(ratio * 64, rel=0.01)
    standard_error = np.std([n.grad_sq for n in norms]) / np.sqrt(len(norms))
    assert abs(np.mean([n.grad_sq for n in norms]) - 1) < 3 * standard_error


def test_clamping_or_averaging_ratios_would_be_biased():
    """Why numerators and denominators are pooled: the two obvious alternatives miss by far on the same data."""
    rng = np.random.default_rng(2)
    norms = simulated(rng, 10, n=4000)
    truth = 640
    assert estimate(norms).simple == pytest.approx(truth, rel=0.15)
    clamped = np.mean([n.trace for n in norms]) / np.mean([max(n.grad_sq, 0.0) for n in norms])
    assert clamped < 0.75 * truth
    ratios = np.mean([n.trace / n.grad_sq for n in norms])
    assert abs(ratios / truth - 1) > 0.5


def test_many_batches_know_more_than_the_halves_of_each():
    """At unmoved weights all pairs of 20 batches spread less than the pairs within each batch."""
    problem = Quadratic(mean=1.0, sigma=20.0)

    loss = BatchLoss(half_square)
    pooled, halved = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        block = [problem.batch(32, generator) for _ in range(20)]
        model = problem.model()
        pooled.append(float(measure_block(model, MeanGradient(loss), block).grad_sq))
        source = HalfBatches(model, loss)
        halved.append(np.mean([float(source.measure(batch).grad_sq) for batch in block]))
    assert np.mean(pooled) == pytest.approx(problem.grad_sq, rel=0.05)
    assert np.std(pooled) < 0.6 * np.std(halved)


def test_per_example_norms_agree_with_halves_and_spread_less():
    model, data = digits_mlp(), digits()
    x, y = data.tensors
    halves, examples = (kind(model, BatchLoss(cross_entropy)) for kind in (HalfBatches, PerExample))
    generator = torch.Generator().manual_seed(0)
    found = {halves: [], examples: []}
    for _ in range(300):
        chosen = torch.randint(len(x), (64,), generator=generator)
        for source, norms in found.items():
            norms.append(source.measure((x[chosen], y[chosen])))
    trace, grad_sq = exact(per_example_gradients(model, cross_entropy, x, y))
    spread = {}
    for source, norms in found.items():
        pooled = estimate(to_floats(norms))
        assert pooled.trace == pytest.approx(trace, rel=0.05)
        assert pooled.grad_sq == pytest.approx(grad_sq, rel=0.1)
        spread[source] = np.var([float(n.trace) for n in norms]), np.var([float(n.grad_sq) for n in norms])
    assert spread[examples][0] < 0.5 * spread[halves][0]
    assert spread[examples][1] < spread[halves][1]
