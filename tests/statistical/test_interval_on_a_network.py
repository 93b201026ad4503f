"""The interval on a real network's gradients, which are neither Gaussian nor isotropic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.b_simple import estimate, to_floats
from benchmarks.common.per_example import PerExample
from benchmarks.noise_scale.frozen import Population, train
from tests.problems import digits, digits_mlp, exact, per_example_gradients

REPETITIONS, MEASUREMENTS, BATCH = 400, 30, 64


@pytest.fixture(params=[0, 300], ids=["at the start", "after 300 steps"])
def population(request) -> tuple[torch.nn.Module, Population]:
    model, data = digits_mlp(), digits()
    train(model, *data.tensors, request.param, batch=BATCH, lr=0.1)
    return model, Population(model, *data.tensors)


def test_the_fast_way_is_the_slow_way(population):
    """The benchmark's shortcut against every gradient by autograd, and against the package's sources batch by batch."""
    model, fast = population
    x, y = digits().tensors
    gradients = per_example_gradients(model, cross_entropy, x, y)
    assert (fast.trace, fast.grad_sq) == pytest.approx(exact(gradients), rel=1e-4)
    moments, noise = fast.moments(torch.Generator(), len(x)), gradients - gradients.mean(0)
    along = noise @ gradients.mean(0)
    assert moments.along == pytest.approx(along.var().item(), rel=1e-4)
    assert moments.fourth == pytest.approx(noise.square().sum(1).var().item(), rel=1e-3)
    assert moments.third == pytest.approx(torch.cov(torch.stack([noise.square().sum(1), along]))[0, 1].item(), rel=1e-3)
    different = (noise @ noise.T).fill_diagonal_(0).square().sum() / (len(x) * (len(x) - 1))
    assert moments.trace_of_square == pytest.approx(different.item(), rel=1e-3)
    m = fast.measure(5, BATCH, torch.Generator().manual_seed(1))
    chosen = torch.randint(len(x), (5, BATCH), generator=torch.Generator().manual_seed(1))
    for kind, found in ((HalfBatches, m.halves), (PerExample, m.examples)):
        source = kind(model, BatchLoss(cross_entropy))
        for c, norms in zip(chosen, found, strict=True):
            slow = to_floats([source.measure((x[c], y[c]))])[0]
            assert (slow.small_size, slow.large_size) == (norms.small_size, norms.large_size)
            assert (slow.small, slow.large) == pytest.approx((norms.small, norms.large), rel=1e-4)


def test_the_interval_covers_as_often_as_it_says(population):
    _, fast = population
    generator = torch.Generator().manual_seed(0)
    drawn = [fast.measure(MEASUREMENTS, BATCH, generator) for _ in range(REPETITIONS)]
    for source in ("halves", "examples"):
        found = [estimate(getattr(m, source), confidence=0.9) for m in drawn]
        covered = np.mean([e.low <= fast.noise_scale <= e.high for e in found])
        assert 0.86 <= covered <= 0.94, f"{source}: B_simple {fast.noise_scale:.0f} is covered by {covered:.1%}"
        above = np.mean([e.cautious <= fast.noise_scale for e in found])
        assert 0.78 <= above <= 0.96, f"{source}: {above:.1%} are above the one-sided limit, nominally 84 %"
