import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.learning_rate import gain, linear, lr_rule, none, sqrt
from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.types import NoiseScale

PHI_30 = NoiseScale(grad_sq=1.0, trace=30.0, low=20.0, high=40.0, cautious=25.0, measurements=9)
LOST = NoiseScale(grad_sq=-1.0, trace=30.0, low=20.0, high=40.0, cautious=25.0, measurements=9)


def test_four_times_the_batch():
    assert linear(4, None) == 4
    assert sqrt(4, None) == 2
    assert none(4, None) == 1
    assert gain(10)(4, PHI_30) == pytest.approx((1 + 30 / 10) / (1 + 30 / 40))


def test_half_the_batch():
    assert linear(0.5, None) == 0.5
    assert sqrt(0.25, None) == 0.5
    assert gain(10)(0.5, PHI_30) == pytest.approx((1 + 30 / 10) / (1 + 30 / 5))


@pytest.mark.parametrize("rule", [linear, sqrt, none, gain(10)])
def test_an_unchanged_batch_leaves_the_learning_rate_exactly_as_it_is(rule):
    assert rule(1.0, PHI_30) == 1.0


@pytest.mark.parametrize("unknown", [None, LOST])
def test_gain_takes_nothing_while_the_noise_scale_is_not_known(unknown):
    assert gain(10)(4, unknown) == 1


@pytest.mark.parametrize(
    ("name", "adaptive", "factor"),
    [("auto", True, 2), ("auto", False, 4), ("linear", True, 4), ("sqrt", False, 2), ("none", False, 1)],
)
def test_rules_by_name(name, adaptive, factor):
    assert lr_rule(name, adaptive=adaptive, base_batch_size=10)(4, None) == factor


def test_gain_by_name_is_stated_for_the_base_batch():
    assert lr_rule("gain", adaptive=True, base_batch_size=10)(4, PHI_30) == gain(10)(4, PHI_30)


def test_a_function_is_asked_with_k_and_the_noise_scale():
    rule = lr_rule(lambda k, noise_scale: k * noise_scale.measurements, adaptive=True, base_batch_size=10)
    assert rule(2, PHI_30) == 18


def test_a_function_may_return_a_numpy_number():
    factor = lr_rule(lambda k, _: np.sqrt(np.float64(k)), adaptive=True, base_batch_size=10)(4, None)
    assert factor == 2
    assert type(factor) is float  # torch.load accepts no NumPy number in a checkpoint


@pytest.mark.parametrize("returned", [float("nan"), float("inf"), 0, -1, "2", None])
def test_a_function_that_returns_no_factor_is_told(returned):
    rule = lr_rule(lambda k, _: returned, adaptive=True, base_batch_size=10)
    with pytest.raises(ValueError, match=r"lr_scaling= returned .* above 0"):
        rule(2, None)


class Lookahead(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("optimizer", "adaptive"),
    [(torch.optim.SGD, False), (torch.optim.ASGD, False), (torch.optim.Adam, True), (torch.optim.AdamW, True),
     (torch.optim.RMSprop, True), (torch.optim.Adagrad, True), (Lookahead, True)],
)  # fmt: skip
def test_which_optimizers_divide_by_the_gradients_size(optimizer, adaptive):
    assert traits_of(optimizer(nn.Linear(1, 1).parameters(), lr=0.1)).adaptive == adaptive


def test_an_unknown_optimizer_is_named_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "adaptbs"):
        traits_of(Lookahead(nn.Linear(1, 1).parameters(), lr=0.1))
    assert "lookahead" in caplog.text
    assert "lr_scaling=" in caplog.text


def test_sgds_rate_rises_with_the_batch_while_noise_rules_and_stays_where_it_does_not():
    rule = lr_rule("auto", adaptive=False, base_batch_size=64, critical=4)
    known = NoiseScale(grad_sq=1.0, trace=16.0, low=16.0, high=16.0, cautious=16.0, measurements=9)
    assert rule(1, known) == 1
    assert rule(4, known) == pytest.approx((1 + 64 / 64) / (1 + 64 / 256))  # a critical batch of 4 x 16
    assert rule(1e9, known) == pytest.approx(2)
    assert rule(4, replace(known, trace=1e9, cautious=1e9)) == pytest.approx(4)
    assert rule(4, None) == rule(4, replace(known, measurements=3)) == 4
    assert rule(4, replace(known, grad_sq=-1.0, cautious=0.0)) == 4, "|G|^2 is lost in noise"
    assert rule(0.25, known) == pytest.approx((1 + 64 / 64) / (1 + 64 / 16))


def test_sgds_rate_goes_by_the_estimate_but_not_by_one_that_strays():
    rule = lr_rule("auto", adaptive=False, base_batch_size=64, critical=4)
    known = NoiseScale(grad_sq=1.0, trace=16.0, low=16.0, high=16.0, cautious=16.0, measurements=9)
    assert rule(4, replace(known, cautious=9.0)) == rule(4, known)
    twice = rule(4, replace(known, trace=32.0))
    assert rule(4, replace(known, trace=1e9)) == rule(4, replace(known, grad_sq=-1.0)) == twice > rule(4, known)
    # A batch that has grown keeps its learning rate where the next measurements resolve nothing.
    assert rule(4, replace(known, cautious=0.0)) == rule(4, known)


def test_adams_rate_is_the_root_of_sgds():
    known = NoiseScale(grad_sq=1.0, trace=16.0, low=16.0, high=16.0, cautious=16.0, measurements=9)
    adams, sgds = (lr_rule("auto", adaptive=a, base_batch_size=64, critical=3) for a in (True, False))
    for k in (0.25, 1, 4, 1e9):
        assert adams(k, known) == pytest.approx(sgds(k, known) ** 0.5)
    assert adams(4, None) == 2
    noise = replace(known, trace=1e9, cautious=1e9)
    assert adams(4, noise) == pytest.approx(sqrt(4, noise))
