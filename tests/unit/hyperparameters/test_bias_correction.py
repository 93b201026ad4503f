import math
import random

import pytest
import torch

from adaptbs.hyperparameters.bias_correction import Accumulated, corrections, settled_betas, steps_made

OFF = 0.0  # a beta whose average has all its mass at once, so that nothing is to be corrected


def c1(beta: float, *, power: float, steps: int, exponent: float) -> float:
    """The first average's mass as the optimizer takes it to be, over the true one."""
    lr, eps = corrections((beta, OFF), (power, 1.0), steps, (exponent, float(steps)))
    assert eps == 1
    return lr


def c2(beta: float, *, power: float, steps: int, exponent: float) -> float:
    """The same of the second average, by what it does to eps; the learning rate gets as much of it."""
    lr, eps = corrections((OFF, beta), (1.0, power), steps, (float(steps), exponent))
    assert lr == eps
    return eps**-2


def with_the_coming_step(group: Accumulated) -> tuple[int, float, float]:
    """t and S of both betas."""
    assert group.prepared
    return group.steps + 1, group.first + group.power_first, group.second + group.power_second


@pytest.mark.parametrize("power", [1.0, 4.0, 0.5, math.sqrt(8)])
def test_a_constant_batch_needs_no_correction(power):
    group = Accumulated()
    for steps in range(7):
        group.seen(steps, coming=(power, power))
    t, first, second = with_the_coming_step(group)
    assert c1(0.9, power=power, steps=t, exponent=first) == c2(0.999, power=power, steps=t, exponent=second) == 1
    assert corrections((0.9, 0.999), (power, power), t, (first, second)) == (1.0, 1.0)


def test_two_steps_by_hand():
    """One step with beta = 1/2 and one with its square: the mass is 1 - 1/8, and Adam takes 1 - (1/4)^2."""
    for ratio in (c1, c2):
        assert ratio(0.5, power=2, steps=2, exponent=3) == pytest.approx((15 / 16) / (7 / 8))


def exponent_for(c: float) -> float:
    """S, at which a first step of beta = 1/2 at the power 2 has c times its true mass: (1 - 1/4)/(1 - 2^-S) = c."""
    return -math.log2(1 - 0.75 / c)


@pytest.mark.parametrize(("c", "factors"), [((3, 1), (3, 1)), ((1, 4), (0.5, 0.5)), ((3, 4), (1.5, 0.5))])
def test_the_learning_rate_and_eps_by_hand(c, factors):
    """lr c1/sqrt(c2) and eps/sqrt(c2)."""
    exponents = exponent_for(c[0]), exponent_for(c[1])
    assert corrections((0.5, 0.5), (2, 2), 1, exponents) == pytest.approx(factors)


def test_the_case_of_the_docs():
    """beta2 = .999 becomes .999^8 after 500 steps: without the correction the step grows by 1.57."""
    lr, eps = corrections((OFF, 0.999), (1, 8), 501, (501, 508))
    assert 1 / lr == 1 / eps == pytest.approx(1.57, abs=0.01)


def test_once_all_has_been_accumulated_it_is_exactly_one():
    assert corrections((0.9, 0.99), (8, 8), 3000, (5000, 5000)) == (1.0, 1.0)


@pytest.mark.parametrize(("off", "left_out"), [(5e-7, True), (2e-6, False)])
def test_what_is_next_to_nothing_is_left_out(off, left_out):
    lr, eps = corrections((0.5, OFF), (2, 1), 1, (exponent_for(1 + off), 1))
    assert eps == 1
    assert (lr == 1) if left_out else (lr == pytest.approx(1 + off, rel=1e-9) and lr != 1)


def test_an_average_that_is_off_or_not_corrected_has_nothing_to_correct():
    assert c1(OFF, power=8, steps=2, exponent=9) == c2(OFF, power=8, steps=2, exponent=9) == 1
    both = corrections((0.5, 0.5), (2, 2), 2, (3, 3))
    first = corrections((0.5, 0.5), (2, 2), 2, (3, 3), debiased=(True, False))
    second = corrections((0.5, 0.5), (2, 2), 2, (3, 3), debiased=(False, True))
    assert first == (pytest.approx((15 / 16) / (7 / 8)), 1)
    assert (first[0] * second[0], second[1]) == pytest.approx(both)


def test_steps_count_at_the_powers_they_were_made_at():
    group = Accumulated()
    group.seen(10, coming=(2.0, 4.0))  # made before
    assert with_the_coming_step(group) == (11, 12.0, 14.0)
    group.seen(11, coming=(1.5, 2.0))
    assert with_the_coming_step(group) == (12, 13.5, 16.0)
    group.seen(11, coming=(3.0, 8.0))  # skipped
    assert with_the_coming_step(group) == (12, 15.0, 22.0)


def test_where_the_count_is_not_known_what_was_prepared_was_made():
    group = Accumulated()
    group.seen(10)
    group.seen(None)
    assert (group.steps, group.first, group.second) == (10, 10, 10)
    group.seen(None, coming=(2.0, 4.0))
    assert (group.steps, group.first, group.second) == (10, 10, 10)
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


@pytest.mark.parametrize("seed", range(200))
def test_below_the_betas_that_are_settled_nothing_is_corrected_any_more(seed):
    choose = random.Random(seed)
    power = choose.choice((1.0, 1.19, 4.0, 16.0))
    steps, before = choose.randint(1, 2000), choose.choice((0, 0, choose.randint(1, 2000)))
    exponent = steps * power + before * (choose.random() - 0.5)
    if exponent <= 0:
        return
    most = settled_betas(power, steps, exponent)
    assert 0 <= most <= 1
    for further in (0, 1, 7, 500):
        made, summed = steps + further, exponent + further * power
        for beta in (most * (1 - 1e-9), most * choose.random()):
            assert corrections((beta, beta), (power, power), made, (summed, summed)) == (1, 1)
            for debiased in ((True, False), (False, True)):
                assert corrections((beta, beta), (power, power), made, (summed, summed), debiased) == (1, 1)
