"""Norms from accumulated passes against the same micro-batches measured on their own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from adaptbs.gradients.accumulated import AccumulatedGradients
from adaptbs.gradients.halves import GradientPool
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.types import SquaredNorms
from tests.problems import Traps, digits, digits_mlp

SIZE, PASSES = 16, 4
MICRO = [digits()[SIZE * i : SIZE * (i + 1)] for i in range(PASSES)]


def pooled(model: nn.Module, batches=MICRO) -> SquaredNorms:
    pool, gradient = GradientPool(SIZE), MeanGradient(BatchLoss(cross_entropy))
    for batch in batches:
        pool.add(gradient(model, batch))
    return pool.norms()


def agree(found: SquaredNorms, expected: SquaredNorms, factor: float = 1.0) -> None:
    assert (found.small_size, found.large_size) == (SIZE, PASSES * SIZE)
    assert float(found.small) == pytest.approx(factor**2 * float(expected.small), rel=1e-4)
    assert float(found.large) == pytest.approx(factor**2 * float(expected.large), rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1 / PASSES, SIZE], ids=["mean", "divided by k", "sum"])
def test_same_as_the_micro_batches_on_their_own(factor):
    model = digits_mlp()
    expected = pooled(model)
    watch = AccumulatedGradients(model)
    for x, y in MICRO:
        (factor * cross_entropy(model(x), y)).backward()
    agree(watch.norms(SIZE), expected, factor)


def test_tied_frozen_and_unused_parameters():
    torch.manual_seed(0)
    model, tokens = Traps(), torch.randint(0, 10, (PASSES * SIZE,))
    batches = [(t, t.roll(1)) for t in tokens.split(SIZE)]
    expected = pooled(model, batches)
    watch = AccumulatedGradients(model)
    for x, y in batches:
        cross_entropy(model(x), y).backward()
    agree(watch.norms(SIZE), expected)


def test_complex_weights():
    torch.manual_seed(0)
    model = nn.Linear(64, 10, dtype=torch.complex64)
    batches = [(x.flatten(1).to(torch.complex64), y) for x, y in MICRO]
    pool, gradient = GradientPool(SIZE), MeanGradient(BatchLoss(lambda out, y: cross_entropy(out.abs(), y)))
    for batch in batches:
        pool.add(gradient(model, batch))
    watch = AccumulatedGradients(model)
    for x, y in batches:
        cross_entropy(model(x).abs(), y).backward()
    agree(watch.norms(SIZE), pool.norms())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_step_after_step_through_clipping_and_weight_decay(set_to_none):
    model = digits_mlp()
    optimizer = Adam(model.parameters(), 1e-2, weight_decay=0.1)
    watch = AccumulatedGradients(model)
    for _ in range(3):
        expected = pooled(model)
        for x, y in MICRO:
            cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        agree(watch.norms(SIZE), expected)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def test_a_grad_scaler_changes_nothing_but_a_factor_and_an_overflow_is_not_finite():
    model, scaler = digits_mlp(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = SGD(model.parameters(), 0.1)
    watch = AccumulatedGradients(model)
    expected = pooled(model)
    for x, y in MICRO:
        scaler.scale(cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    agree(watch.norms(SIZE), expected, 2.0**10)
    optimizer.zero_grad()
    for x, y in MICRO:
        (torch.inf * cross_entropy(model(x), y)).backward()
    assert not math.isfinite(float(watch.norms(SIZE).large))


def test_one_pass_shows_no_noise():
    model = digits_mlp()
    watch = AccumulatedGradients(model)
    cross_entropy(model(MICRO[0][0]), MICRO[0][1]).backward()
    assert watch.norms(SIZE) is None


@pytest.mark.parametrize("factor", [1.0, 1e-6], ids=["usual", "small"])
def test_gradients_left_over_from_before_are_noticed(factor):
    model = digits_mlp()
    (factor * cross_entropy(model(MICRO[0][0]), MICRO[0][1])).backward()
    watch = AccumulatedGradients(model)
    for x, y in MICRO:
        (factor * cross_entropy(model(x), y)).backward()
    assert math.isnan(float(watch.norms(SIZE).small))


def test_no_trace_after_close():
    model = digits_mlp()
    watch = AccumulatedGradients(model)
    watch.close()
    for p in model.parameters():
        assert not p._backward_hooks and not p._post_accumulate_grad_hooks
    cross_entropy(model(MICRO[0][0]), MICRO[0][1]).backward()
    cross_entropy(model(MICRO[0][0]), MICRO[0][1]).backward()
    assert watch.norms(SIZE) is None


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"model=.*it must be a torch.nn.Module"):
        AccumulatedGradients(digits_mlp().parameters())
    watch = AccumulatedGradients(digits_mlp())
    with pytest.raises(ValueError, match="size=0"):
        watch.norms(0)
    with pytest.raises(TypeError, match=r"size=8\.0"):
        watch.norms(8.0)
