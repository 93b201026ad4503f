import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from adaptbs import NoiseScale, SquaredNorms
from adaptbs.types import noise_scale_text


def noise_scale(trace: float, grad_sq: float) -> NoiseScale:
    return NoiseScale(grad_sq, trace, low=0.0, high=float("inf"), cautious=0.0, measurements=1)


def test_squared_norms_solve_for_the_true_gradient_and_its_noise():
    # |g|^2 = |G|^2 + tr(Sigma)/size, with |G|^2 = 3 and tr(Sigma) = 4: 3 + 4/2 = 5 and 3 + 4/4 = 4.
    norms = SquaredNorms(small_size=2, small=5.0, large_size=4, large=4.0)
    assert norms.grad_sq == 3
    assert norms.trace == 4


def test_grad_sq_is_not_clamped():
    assert SquaredNorms(small_size=2, small=5.0, large_size=4, large=2.0).grad_sq == -1


def test_tensors_stay_on_their_device():
    norms = SquaredNorms(2, torch.tensor(5.0), 4, torch.tensor(4.0))
    assert isinstance(norms.grad_sq, torch.Tensor)
    assert norms.trace == torch.tensor(4.0)


def test_simple_is_the_ratio():
    assert noise_scale(trace=12.0, grad_sq=3.0).simple == 4


@pytest.mark.parametrize(("trace", "grad_sq"), [(12.0, 0.0), (12.0, -3.0), (-12.0, 3.0), (-12.0, -3.0), (0.0, 3.0)])
def test_simple_is_none_where_there_is_no_positive_ratio(trace, grad_sq):
    assert noise_scale(trace, grad_sq).simple is None


@pytest.mark.parametrize(
    ("low", "high", "measurements", "doubt"),
    [
        (10.0, 20.0, 4, None),
        (10.0, 20.0, 3, "few measurements"),
        (10.0, float("inf"), 4, "at least low"),
        (0.0, float("inf"), 4, "nothing resolved"),
    ],
)
def test_doubt_is_spoken(low, high, measurements, doubt):
    assert NoiseScale(1.0, 15.0, low, high, cautious=low, measurements=measurements).doubt == doubt


def test_an_estimate_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        noise_scale(12.0, 3.0).low = 1.0


def estimate(grad_sq: float, low: float, high: float) -> NoiseScale:
    return NoiseScale(grad_sq, 241.2, low, high, cautious=low, measurements=9)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (estimate(1.0, 129.0, 977.4), "241 (129 to 977)"),
        (estimate(0.1, 1670.6, float("inf")), "at least 1,671"),
        (estimate(-1.0, 1670.6, float("inf")), "at least 1,671"),
        (estimate(-1.0, 10.0, 20.0), "10 to 20"),
        (estimate(1.0, 0.0, float("inf")), "not known yet"),
    ],
)
def test_it_prints_as_people_read_it(value, text):
    assert str(value) == f"{value}" == text
    assert f"{value:>30}" == text.rjust(30)
    assert repr(value).startswith("NoiseScale(grad_sq=")


def test_it_is_a_number_where_there_is_one():
    known, unknown = estimate(1.0, 129.0, 977.0), estimate(-1.0, 1671.0, float("inf"))
    assert float(known) == known.simple == 241.2
    assert f"{known:.0f} {known:8.1f} {known:,.2f} {known:.3g}" == "241    241.2 241.20 241"
    for ask in (float, "{:.0f}".format):
        with pytest.raises(ValueError, match=r"float\(noise_scale\): .* is at least 1,671, .* Use \.low and \.high"):
            ask(unknown)


def test_the_estimate_is_believed_up_to_twice_its_cautious_limit():
    known = NoiseScale(grad_sq=1.0, trace=300.0, low=100.0, high=900.0, cautious=200.0, measurements=9)
    assert known.believed == 300
    assert replace(known, cautious=290.0, low=280.0, measurements=900).believed == 300  # however often was measured
    assert replace(known, trace=5000.0).believed == 400  # an estimate that strays
    assert replace(known, grad_sq=-1.0).believed == 400  # |G|^2 lost in noise
    assert replace(known, cautious=0.0).believed == 300  # no limit
    assert replace(known, grad_sq=-1.0, cautious=0.0).believed == 0


@pytest.mark.parametrize(
    ("simple", "low", "high", "text"),
    [
        (0.3, 0.12, 0.96, "0.3 (0.1 to 1)"),
        (0.3, 0.12, math.inf, "at least 0.1"),
        (None, 0.0, 0.04, "0 to 0.04"),
        (1.4, 0.95, 1200, "1 (1 to 1,200)"),
    ],
)
def test_a_noise_scale_below_1_is_not_shown_as_none(simple, low, high, text):
    assert noise_scale_text(simple, low, high) == text
