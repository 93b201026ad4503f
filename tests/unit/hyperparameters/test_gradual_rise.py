import numpy as np
import pytest

from adaptbs.hyperparameters.gradual_rise import GradualRise
from adaptbs.hyperparameters.learning_rate import RISE


def steps_until(rise: GradualRise, lr: float, factor: float) -> int:
    """Steps at this rate until the factor stays."""
    for i in range(1, 100):
        before = rise.reached
        if rise.limited([{"lr": lr, "max_lr": 0.1}], factor, 2.0) == before:
            return i - 1
    raise AssertionError


def test_the_factor_rises_step_by_step_to_what_the_peak_has_room_for():
    rise = GradualRise()
    rise.begin_anew(0.1, 1.0)
    assert rise.limited([{"lr": 0.1}], 8.0, 2.0) == pytest.approx(RISE)
    assert 1 + steps_until(rise, 0.1, 8.0) == 36 and rise.reached == pytest.approx(2)
    steps_until(rise, 0.05, 8.0)
    assert rise.reached == pytest.approx(4)
    steps_until(rise, 0.025, 8.0)
    assert rise.reached == pytest.approx(8)


def test_it_falls_at_once():
    rise = GradualRise()
    rise.begin_anew(0.1, 3.0)
    assert rise.limited([{"lr": 0.1}], 1.0, 3.0) == 1.0


def test_a_rate_of_numpys_is_limited_as_any_other_and_leaves_no_number_of_numpys_behind():
    rise = GradualRise()
    rise.begin_anew(0.0, 3.0)
    rate = np.float32(0.1)
    assert rise.limited([{"lr": rate}], 8.0, 3.0) == pytest.approx(3)  # and not RISE times it
    assert (type(rise.largest_lr), type(rise.reached)) == (float, float)
