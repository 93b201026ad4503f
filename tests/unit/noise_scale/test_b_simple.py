import math

import numpy as np
import pytest
import torch

from adaptbs.noise_scale.b_simple import estimate, fieller, student_t, to_floats
from adaptbs.types import SquaredNorms


def norms(trace: float, grad_sq: float) -> SquaredNorms:
    """The measurement, on one sample and on two, that has exactly this trace and grad_sq."""
    return SquaredNorms(1, grad_sq + trace, 2, grad_sq + trace / 2)


def covariance(trace: float = 0.0, both: float = 0.0, grad_sq: float = 0.0) -> np.ndarray:
    return np.array([[trace, both], [both, grad_sq]])


def test_numerators_and_denominators_are_pooled_before_the_division():
    found = estimate([norms(10, 1), norms(10, 3)])
    assert (found.trace, found.grad_sq) == pytest.approx((10, 2))
    assert found.simple == pytest.approx(5)  # the mean of the ratios would be 6.7
    assert found.measurements == 2


def test_a_negative_measurement_counts_as_it_is():
    assert estimate([norms(10, 3), norms(10, -1)]).grad_sq == pytest.approx(1)


def test_weights_count_as_repetition():
    assert estimate([norms(10, 1), norms(10, 3)], weights=[3, 1]).grad_sq == pytest.approx(1.5)


def test_limits_are_those_of_two_measurements_worked_by_hand():
    # grad_sq is 1 and 3: mean 2, standard error 1. Student's t at confidence .5 with 1 degree of freedom is 1, so the
    # interval holds all phi with |10 - 2 phi| <= phi.
    found = estimate([norms(10, 1), norms(10, 3)], confidence=0.5)
    assert found.low == pytest.approx(10 / 3)
    assert found.high == pytest.approx(10)


def test_one_measurement_has_a_value_but_no_limits():
    found = estimate([norms(10, 2)])
    assert found.simple == pytest.approx(5)
    assert (found.low, found.high, found.cautious) == (0, math.inf, 0)


def test_measurements_that_agree_leave_no_doubt():
    found = estimate([norms(10, 2)] * 4)
    assert (found.low, found.cautious, found.high) == pytest.approx((5, 5, 5))


def test_the_cautious_limit_lies_between_low_and_the_estimate():
    found = estimate([norms(10, g) for g in (1, 2, 3, 2)])
    assert found.low < found.cautious < found.simple < found.high


def test_no_measurement_is_an_error():
    with pytest.raises(ValueError, match="norms is empty"):
        estimate([])


def test_fieller_with_doubt_about_the_trace_only():
    # |4 - 2 phi| <= 2 * 1
    assert fieller(4, 2, covariance(trace=1), t=2) == pytest.approx((1, 3))


def test_fieller_with_doubt_about_the_gradient_only():
    # |4 - 2 phi| <= 2 * phi/2
    assert fieller(4, 2, covariance(grad_sq=0.25), t=2) == pytest.approx((4 / 3, 4))


def test_fieller_with_both_in_step():
    # trace - phi grad_sq has variance (1 - phi)^2: |4 - 2 phi| <= |1 - phi|, so 5/3 <= phi <= 3
    assert fieller(4, 2, covariance(1, 1, 1), t=1) == pytest.approx((5 / 3, 3))


@pytest.mark.parametrize(("variance", "low"), [(0.9999, 1.0), (1.0, 1.0), (1.0001, 1.0), (4.0, 2 / 3)])
def test_the_lower_limit_is_smooth_where_the_gradient_becomes_insignificant(variance, low):
    # |4 - 2 phi| <= 2 sd phi from phi = 4/(2 + 2 sd) on; without end from sd = 1 on
    found, high = fieller(4, 2, covariance(grad_sq=variance), t=2)
    assert found == pytest.approx(low, rel=1e-3)
    assert math.isinf(high) == (variance >= 1)


def test_a_trace_within_its_noise_gives_no_lower_limit():
    assert fieller(1, 1, covariance(trace=1), t=2) == pytest.approx((0, 3))


@pytest.mark.parametrize(("trace", "grad_sq"), [(4, -2), (-4, 2), (0, 2)])
def test_nothing_is_claimed_where_no_positive_ratio_fits(trace, grad_sq):
    assert fieller(trace, grad_sq, covariance(), t=2) == (0, math.inf)


def test_student_t_at_its_two_known_ends():
    assert student_t(0.5, 1) == pytest.approx(1)  # the quartile of Cauchy's distribution
    assert student_t(0.9, 1e9) == pytest.approx(1.6449, abs=1e-4)  # the normal one


def test_tensors_and_floats_are_read_in_order():
    mixed = [SquaredNorms(1, torch.tensor(3.0), 2, 2.0), SquaredNorms(1, 5.0, 2, torch.tensor(4.0))]
    assert to_floats(mixed) == [SquaredNorms(1, 3.0, 2, 2.0), SquaredNorms(1, 5.0, 2, 4.0)]


class OnMps(torch.Tensor):
    """Says that it lies on Apple's GPU, where there is no float64."""

    device = property(lambda self: torch.device("mps"))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double or any(each is torch.float64 for each in args):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_norms_on_a_device_without_float64_are_read():
    small, large = (torch.tensor(value).as_subclass(OnMps) for value in (3.5, 0.1))
    (read,) = to_floats([SquaredNorms(1, small, 16, large)])
    assert (read.small, read.large) == (3.5, torch.tensor(0.1).item())


@pytest.mark.parametrize("exponent", [-600, -300, 250, 500, 1000])
def test_gradients_of_any_length_have_the_same_noise_scale(exponent):
    values = [(10, 1), (11, 3), (9, 2), (12, 2)]
    usual = estimate([norms(*value) for value in values])
    found = estimate([norms(*(math.ldexp(v, exponent) for v in value)) for value in values])
    assert (found.simple, found.low, found.high, found.cautious) == (
        usual.simple,
        usual.low,
        usual.high,
        usual.cautious,
    )
    assert (found.trace, found.grad_sq) == (math.ldexp(usual.trace, exponent), math.ldexp(usual.grad_sq, exponent))
