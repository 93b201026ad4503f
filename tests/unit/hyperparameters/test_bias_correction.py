import math

import pytest
import torch

from adaptbs.hyperparameters.bias_correction import Accumulated, correction, mass_ratio, steps_made


@pytest.mark.parametrize("power", [1.0, 4.0, 0.5, math.sqrt(8)])
def test_a_constant_batch_needs_no_correction(power):
    group = Accumulated()
    for steps in range(7):
        group.seen(steps)
        t, first, second = group.prepare(power, power)
    ratios = (
        mass_ratio(0.9, power=power, steps=t, exponent=first),
        mass_ratio(0.999, power=power, steps=t, exponent=second),
    )
    assert ratios == pytest.approx((1, 1))
    assert correction(*ratios) == (1.0, 1.0)


def test_two_steps_by_hand():
    """One step with beta = 1/2 and one with its square: the mass is 1 - 1/8, and Adam takes 1 - (1/4)^2."""
    assert mass_ratio(0.5, power=2, steps=2, exponent=3) == pytest.approx((15 / 16) / (7 / 8))


def test_the_learning_rate_and_eps_by_hand():
    """lr c1/sqrt(c2) and eps/sqrt(c2)."""
    assert correction(3, 1) == (3, 1)
    assert correction(1, 4) == (0.5, 0.5)
    assert correction(3, 4) == (1.5, 0.5)


def test_the_case_of_the_docs():
    """beta2 = .999 becomes .999^8 after 500 steps: without the correction the step grows by 1.57."""
    lr, eps = correction(1, mass_ratio(0.999, power=8, steps=501, exponent=508))
    assert 1 / lr == 1 / eps == pytest.approx(1.57, abs=0.01)


def test_once_all_has_been_accumulated_it_is_exactly_one():
    first, second = (mass_ratio(beta, power=8, steps=3000, exponent=5000) for beta in (0.9, 0.99))
    assert correction(first, second) == (1.0, 1.0)


def test_what_is_next_to_nothing_is_left_out():
    assert correction(1 + 5e-7, 1) == (1.0, 1.0)
    assert correction(1 + 2e-6, 1) == (1 + 2e-6, 1.0)


def test_an_average_that_is_off_has_nothing_to_correct():
    assert mass_ratio(0.0, power=8, steps=2, exponent=9) == 1


def test_steps_count_at_the_powers_they_were_made_at():
    group = Accumulated()
    group.seen(10)  # made before
    assert group.prepare(2.0, 4.0) == (11, 12.0, 14.0)
    group.seen(11)
    assert group.prepare(1.5, 2.0) == (12, 13.5, 16.0)
    group.seen(11)  # skipped
    assert group.prepare(3.0, 8.0) == (12, 15.0, 22.0)


def test_where_the_count_is_not_known_what_was_prepared_was_made():
    group = Accumulated()
    group.seen(10)
    group.seen(None)
    assert (group.steps, group.first, group.second) == (10, 10, 10)
    group.prepare(2.0, 4.0)
    group.seen(None)
    assert (group.steps, group.first, group.second) == (11, 12, 14)


def test_steps_that_are_gone_are_given_back():
    group = Accumulated(steps=10, first=20.0, second=40.0, power_first=2.0, power_second=4.0)
    group.seen(9)
    assert (group.first, group.second) == (18, 36)
    group.seen(0)  # the optimizer has begun anew
    assert (group.first, group.second) == (0, 0)


def test_steps_are_those_of_a_parameter_that_has_made_any():
    frozen, trained = torch.zeros(1), torch.zeros(1)
    assert steps_made([frozen, trained], {}, wait=False) == 0
    assert steps_made([frozen, trained], {trained: {"step": torch.tensor(3.0)}}, wait=False) == 3
    assert steps_made([frozen, trained], {frozen: {}, trained: {"step": 3}}, wait=False) == 3


def test_a_count_on_a_device_is_not_waited_for():
    state = {(weight := torch.zeros(1)): {"step": torch.tensor(3.0, device="meta")}}
    assert steps_made([weight], state, wait=False) is None
