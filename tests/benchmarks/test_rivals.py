"""At weights that do not move all of benchmarks/noise_scale/rivals.py is right on average: moving is what biases."""

import math

import pytest
import torch

from benchmarks.noise_scale.rivals import Consecutive, LastBatch, MovingAverages, PreviousGradient, Stored, TwoRuns
from benchmarks.noise_scale.variance_law import second_moments, variance_law

BATCH, DIMENSIONS = 128, 12
MEAN = torch.linspace(0, 0.5, DIMENSIONS, dtype=torch.float64)
VARIANCE = torch.arange(1, DIMENSIONS + 1, dtype=torch.float64)  # of one sample's gradient
GRAD_SQ, TRACE = float(MEAN.square().sum()), float(VARIANCE.sum())


def gradients(n: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, DIMENSIONS, dtype=torch.float64, generator=generator)
    return MEAN + noise * (VARIANCE / size).sqrt()


@pytest.mark.parametrize("kind", [MovingAverages, Stored, LastBatch, Consecutive, PreviousGradient])
def test_unbiased_at_unmoved_weights(kind):
    rival = kind(BATCH)
    found = [norms for g in gradients(6000, BATCH, 1) if (norms := rival.add(g)) is not None]
    assert sum(float(n.grad_sq) for n in found) / len(found) == pytest.approx(GRAD_SQ, rel=0.06)
    assert sum(float(n.trace) for n in found) / len(found) == pytest.approx(TRACE, rel=0.06)


def test_two_runs_at_the_same_weights():
    rival = TwoRuns(BATCH)
    pairs = zip(gradients(6000, BATCH, 2), gradients(6000, 2 * BATCH, 3), strict=True)
    found = [rival.add(small, large) for small, large in pairs]
    assert sum(float(n.grad_sq) for n in found) / len(found) == pytest.approx(GRAD_SQ, rel=0.06)
    assert sum(float(n.trace) for n in found) / len(found) == pytest.approx(TRACE, rel=0.06)


def test_stored_gradients_give_what_their_sum_gives():
    stored, consecutive = Stored(BATCH), Consecutive(BATCH)
    for g in gradients(100, BATCH, 4):
        a, b = stored.add(g), consecutive.add(g)
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert float(a.grad_sq) == pytest.approx(float(b.grad_sq))
            assert float(a.trace) == pytest.approx(float(b.trace))


def test_the_published_average_is_the_ratio_of_its_averages():
    rival = LastBatch(BATCH, n=2, beta=0.5)
    found = [norms for g in gradients(4, BATCH, 5) if (norms := rival.add(g)) is not None]
    weights = (0.25, 0.5)
    trace = sum(w * float(n.trace) for w, n in zip(weights, found, strict=True))
    grad_sq = sum(w * float(n.grad_sq) for w, n in zip(weights, found, strict=True))
    assert rival.noise_scale == pytest.approx(trace / grad_sq)


def test_the_second_moments_that_the_variance_law_takes():
    moments = torch.tensor([second_moments(list(gradients(40, BATCH, s)), BATCH) for s in range(300)]).mean(0)
    assert moments.tolist() == pytest.approx(
        [TRACE, float(VARIANCE.square().sum()), float(MEAN @ (VARIANCE * MEAN))], rel=0.06
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_the_variance_law(parts):
    n, size = 4000, 64
    split = gradients(n * parts, size, 6).reshape(n, parts, DIMENSIONS)
    total = split.sum(1).square().sum(1) - split.square().sum((1, 2))
    of_pairs = total / (parts * (parts - 1))
    square, along = float(VARIANCE.square().sum()), float(MEAN @ (VARIANCE * MEAN))
    law = math.sqrt(variance_law(parts, size, 1, square, along))
    assert float(of_pairs.std()) == pytest.approx(law, rel=0.05)
