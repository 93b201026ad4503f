"""The ways of benchmarks/noise_scale/watched_ways.py are right where the factor stays, and so are its measurements."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.noise_scale import watched_ways
from benchmarks.noise_scale.watched_head import lstm, measured, step
from benchmarks.noise_scale.watched_ways import LATER, WAYS, Moment, explained, judged

SCALE, FACTOR, ROWS = 300.0, 1.5, 4000


def moment(rng: np.random.Generator, length: float, growth: float, factor: float) -> Moment:
    """Gradients as long as a noise scale of 300 times `growth` has them; the head's noise scale is that / `factor`."""

    def rows(true: np.ndarray, spread: float) -> np.ndarray:
        return true * (1 + spread * rng.standard_normal((ROWS, 2)) * [0.2, 1])

    whole = length * np.array([SCALE * growth, 1.0])
    head = length / 10 * np.array([SCALE * growth / factor, 1.0])
    halves = rows(whole, 1)
    return Moment(halves, rows(head, 0.3), rows(whole, 0.5), whole, head)


def run(factors: np.ndarray) -> list[list[Moment]]:
    """A run whose gradients become shorter and whose noise scale grows, with the factor of each window."""
    rng = np.random.default_rng(0)
    return [[moment(rng, 0.8**i, 1.1**i, factor)] for i, factor in enumerate(factors)]


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch):
    monkeypatch.setattr(watched_ways, "REPETITIONS", 200)


def test_a_factor_that_stays_brings_a_third_of_the_halves_to_the_error_of_all():
    windows = run(np.full(LATER + 4, FACTOR))
    found = judged(windows, windows, list(WAYS), np.random.default_rng(1))
    for name in WAYS:
        if not name.startswith("a third, kept"):  # these lag behind
            assert found[name]["mean"] == pytest.approx(1, abs=0.05), name
            assert 0.86 < found[name]["covered"] < 0.95, name
    assert found["a third, kept .3"]["mean"] < 0.8
    for name in ("watched head, kept .1", "watched head by window, kept .1"):
        assert found[name]["error"] < 1.05 * found["halves"]["error"] < 0.7 * found["halves, a third"]["error"]


def test_a_factor_that_has_just_halved_is_seen_as_what_was_kept():
    factors = np.full(LATER + 4, FACTOR)
    before, windows = run(2 * factors), run(factors)
    found = judged(windows, before, ["watched head by window, kept .3"], np.random.default_rng(1))
    assert found["watched head by window, kept .3"]["mean"] > 1.5
    assert found["watched head by window, kept .3"]["covered"] < 0.7


def test_explained_by_the_head():
    rng = np.random.default_rng(2)
    alike, apart = moment(rng, 1, 1, FACTOR), moment(rng, 1, 1, FACTOR)
    assert explained(apart) < 0.01
    same = Moment(alike.halves, alike.halves / 7, alike.next_batch, alike.true, alike.true_head)
    assert explained(same) == pytest.approx(1)


def test_the_head_is_told_example_by_example():
    torch.manual_seed(0)
    model, x, y = lstm(), torch.randn(6, 1, 14, 14), torch.arange(6)
    gradient, mean_square = step(model, x, y)
    squares = []
    for i in range(6):
        grads = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model[-1].parameters()))
        squares.append(sum(float(g.square().sum()) for g in grads))
    assert mean_square == pytest.approx(np.mean(squares), rel=1e-5)
    whole = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    assert torch.allclose(gradient, torch.cat([g.flatten() for g in whole]), atol=1e-6)


def test_all_pairs_are_what_the_halves_estimate():
    torch.manual_seed(0)
    model, x, y = lstm(), torch.randn(400, 1, 14, 14), torch.randint(2, (400,))
    found = [measured(model, x, y, 20, torch.Generator().manual_seed(i)) for i in range(20)]
    true = np.mean([m.true for m in found], 0)
    assert np.mean([m.halves.mean(0) for m in found], 0) == pytest.approx(true, rel=0.1)
    assert np.mean([m.next_batch.mean(0) for m in found], 0) == pytest.approx(true, rel=0.1)
    assert np.mean([m.head.mean(0) for m in found], 0) == pytest.approx(
        np.mean([m.true_head for m in found], 0), rel=0.1
    )
