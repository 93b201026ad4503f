import math

import pytest
import torch

from adaptbs.bias_correction import Accumulated, correction, steps_made


def test_a_constant_batch_needs_no_correction():
    for k in (1.0, 4.0, 0.5):
        assert correction(0.9, 0.999, k=k, steps=7, exponent=7 * k) == (1.0, 1.0)


def test_two_steps_by_hand():
    """One step at k = 1 and one at 2, beta 1/2: the mass is 1 - 1/8, and Adam takes 1 - (1/4)^2."""
    adam, true = 15 / 16, 7 / 8
    assert correction(0.5, None, k=2, steps=2, exponent=3.0) == (pytest.approx(adam / true), 1.0)
    lr, eps = correction(None, 0.5, k=2, steps=2, exponent=3.0)
    assert lr == eps == pytest.approx(1 / math.sqrt(adam / true))
    assert correction(0.5, 0.5, k=2, steps=2, exponent=3.0)[0] == pytest.approx(math.sqrt(adam / true))


def test_the_case_of_the_docs():
    """beta2 = .999 becomes .999^8 after 500 steps: without the correction the step grows by 1.57."""
    lr, _ = correction(None, 0.999, k=8, steps=500, exponent=500.0)
    assert 1 / lr == pytest.approx(1.57, abs=0.01)


def test_once_all_has_been_accumulated_it_is_exactly_one():
    assert correction(0.9, 0.99, k=8, steps=3000, exponent=5000.0) == (1.0, 1.0)


def test_an_average_that_is_off_has_nothing_to_correct():
    assert correction(0.0, 0.0, k=8, steps=2, exponent=9.0) == (1.0, 1.0)


def test_steps_count_at_the_k_they_were_made_at():
    group = Accumulated()
    group.seen(10)  # made before
    assert group.prepare(4.0) == (11, 14.0)
    group.seen(11)
    assert group.prepare(2.0) == (12, 16.0)
    group.seen(11)  # skipped
    assert group.prepare(8.0) == (12, 22.0)


def test_where_the_count_is_not_known_what_was_prepared_was_made():
    group = Accumulated()
    group.seen(10)
    group.seen(None)
    assert (group.steps, group.exponent) == (10, 10)
    group.prepare(4.0)
    group.seen(None)
    assert (group.steps, group.exponent) == (11, 14)


def test_steps_that_are_gone_are_given_back():
    group = Accumulated(steps=10, exponent=40.0, k=4.0)
    group.seen(9)
    assert group.exponent == 36
    group.seen(0)  # the optimizer has begun anew
    assert group.exponent == 0


def test_steps_are_those_of_a_parameter_that_has_made_any():
    frozen, trained = torch.zeros(1), torch.zeros(1)
    assert steps_made([frozen, trained], {}, wait=False) == 0
    assert steps_made([frozen, trained], {trained: {"step": torch.tensor(3.0)}}, wait=False) == 3
    assert steps_made([frozen, trained], {frozen: {}, trained: {"step": 3}}, wait=False) == 3


def test_a_count_on_a_device_is_not_waited_for():
    state = {(weight := torch.zeros(1)): {"step": torch.tensor(3.0, device="meta")}}
    assert steps_made([weight], state, wait=False) is None
