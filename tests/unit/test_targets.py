import math

import pytest
import torch

from adaptbs.hyperparameters.learning_rate import linear, sqrt
from adaptbs.targets import LARGEST, exponential_ramp, linear_ramp, on_plateau, seesaw, step_ramp

QUARTERS = (0, 0.2, 0.25, 0.49, 0.5, 0.75, 1)


def at(target, *progress: float, batch_size: int = 1) -> list[float]:
    return [target(None, batch_size, p) for p in progress]


def test_a_step_ramp_rises_at_each_quarter_but_not_at_the_very_end():
    assert at(step_ramp(64), *QUARTERS) == [64, 64, 128, 128, 256, 512, 512]


def test_a_step_ramp_of_another_pace():
    assert at(step_ramp(10, every=0.4, factor=1.5), 0, 0.4, 0.8, 1) == [10, 15, 22.5, 22.5]


def test_a_tenth_of_the_run_is_not_missed_by_rounding():
    assert 0.3 / 0.1 < 3
    assert at(step_ramp(1, every=0.1), 0.1 * 3, 0.3, 0.7, 1) == [8, 8, 128, 512]


def test_a_linear_ramp():
    assert at(linear_ramp(64, 256), 0, 0.25, 0.5, 1, 1.7) == [64, 112, 160, 256, 256]


def test_an_exponential_ramp_doubles_at_equal_shares():
    assert at(exponential_ramp(64, 512), 0, 1 / 3, 2 / 3, 1, 1.7) == [64, 128, 256, 512, 512]


def test_ramps_may_fall():
    assert at(linear_ramp(100, 20), 0.5) == [60]
    assert at(exponential_ramp(64, 16), 0.5) == [32]


class Metric:
    """What a user's loop would store: a value a time, or None."""

    def __init__(self) -> None:
        self.value = None

    def __call__(self):
        return self.value


def answers(target, metric: Metric, *values, batch_size: int = 8) -> list[float]:
    """The target's answer after each value, asked in order of progress."""
    found = []
    for i, value in enumerate(values):
        metric.value = value
        found.append(target(None, batch_size, i / 100))
    return found


def test_a_plateau_is_so_many_new_values_without_improvement():
    metric = Metric()
    target = on_plateau(metric, patience=2)
    assert answers(target, metric, None, 3.0, 2.0, 2.5, 2.25, 2.125, 1.0) == [8, 8, 8, 8, 16, 8, 8]


def test_the_same_object_is_no_new_value_but_an_equal_one_is():
    metric = Metric()
    target = on_plateau(metric, patience=1)
    once, again = float("2.5"), float("2.5")
    assert once is not again
    assert answers(target, metric, once, once, once, again, again) == [8, 8, 8, 16, 8]


def test_an_improvement_must_come_to_min_delta():
    metric = Metric()
    target = on_plateau(metric, patience=1, min_delta=0.5)
    assert answers(target, metric, 3.0, 2.75, 2.25, 1.75) == [8, 16, 8, 16]  # 1.75 is not below 2.25 - .5


def test_a_metric_that_is_to_rise():
    metric = Metric()
    target = on_plateau(metric, patience=1, mode="max", factor=3)
    assert answers(target, metric, 0.5, 0.7, 0.6) == [8, 8, 24]


def test_nan_is_no_improvement_and_never_the_best():
    metric = Metric()
    target = on_plateau(metric, patience=2)
    assert answers(target, metric, float("nan"), 2.0, float("nan"), 2.5) == [8, 8, 8, 16]


def test_a_batch_of_one_grows_too():
    metric = Metric()
    assert answers(on_plateau(metric, factor=1.5, patience=1), metric, 1.0, 2.0, batch_size=1) == [1, 2]


def test_another_run_begins_anew():
    metric = Metric()
    target = on_plateau(metric, patience=1)
    answers(target, metric, 3.0, 1.0)
    assert answers(target, metric, 2.0, 2.5) == [8, 16]


def test_seesaw_multiplies_where_the_schedule_divides():
    rates = {0: 1, 0.2: 0.6, 0.5: 0.5, 0.7: 0.3, 0.75: 0.25, 1: 0.25}

    def schedule(progress):
        return rates[max(p for p in rates if p <= progress)]

    assert at(seesaw(64, schedule), *rates) == [64, 64, 128, 128, 256, 256]
    assert at(seesaw(64, schedule, factor=4), *rates) == [64, 64, 64, 64, 256, 256]


@pytest.mark.parametrize("scale", [1, 0.003])
def test_seesaw_counts_from_the_peak(scale):
    def one_cycle(progress):
        return scale * (progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75)

    target = seesaw(32, one_cycle)
    assert at(target, 0, 0.1, 0.25, 0.6, 0.625, 0.8125) == [32, 32, 32, 32, 64, 128]
    assert at(target, 1) == [LARGEST]


def test_seesaw_keeps_the_batch_while_the_schedule_does():
    def warm_up_stable_decay(progress):
        return min(10 * progress, 1.0, 2 * (1 - progress) + 1e-12)

    assert at(seesaw(32, warm_up_stable_decay), 0.05, 0.1, 0.4, 0.75) == [32, 32, 32, 64]


@pytest.mark.parametrize("cut", [2, 4, 64])
def test_the_learning_rate_of_seesaw_with_the_rules_of_auto(cut):
    # The schedule divides by `cut`: Adam's learning rate comes to 1/sqrt(cut) of its peak, SGD's stays.
    k = seesaw(64, lambda progress: 1 if progress < 0.5 else 1 / cut)(None, 64, 0.7) / 64
    assert k == cut
    assert sqrt(k, None) / cut == pytest.approx(1 / math.sqrt(cut))
    assert linear(k, None) / cut == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: step_ramp(0), ValueError, "start=0"),
        (lambda: step_ramp(64.0), TypeError, r"start=64\.0"),
        (lambda: step_ramp(64, every=1), ValueError, "every=1"),
        (lambda: step_ramp(64, factor=1), ValueError, "factor=1"),
        (lambda: step_ramp(64, factor="2"), ValueError, "factor='2'"),
        (lambda: step_ramp(64, factor=math.nan), ValueError, "factor=nan"),
        (lambda: linear_ramp(64, 0), ValueError, "end=0"),
        (lambda: exponential_ramp(64, None), TypeError, "end=None"),
        (lambda: on_plateau(3.0), TypeError, r"metric=3\.0"),
        (lambda: on_plateau(float, patience=0), ValueError, "patience=0"),
        (lambda: on_plateau(float, min_delta=-1), ValueError, "min_delta=-1"),
        (lambda: on_plateau(float, mode="least"), ValueError, "mode='least'"),
        (lambda: on_plateau(lambda: "low")(None, 8, 0.1), TypeError, "metric= returned 'low'"),
        (lambda: seesaw(64, 0.5), TypeError, r"schedule=0\.5"),
        (lambda: seesaw(64, lambda p: 0), ValueError, "nowhere above 0"),
        (lambda: on_plateau(lambda: torch.tensor(1j))(None, 8, 0.1), TypeError, "metric= returned tensor"),
        (lambda: seesaw(64, lambda p: -p), ValueError, "schedule= returned"),
        (lambda: seesaw(64, lambda p: math.nan), ValueError, "schedule= returned nan"),
        (lambda: seesaw(64, lambda p: None), TypeError, "schedule= returned None"),
    ],
)
def test_a_wrong_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def steep(progress: float) -> float:
    return math.exp(-744 * progress)  # down to the smallest numbers that there are


@pytest.mark.parametrize(
    "target",
    [
        step_ramp(64, every=0.0001), step_ramp(64, every=0.0001, factor=1.5), step_ramp(1, every=0.3, factor=1e300),
        seesaw(64, steep), seesaw(64, steep, factor=1.01), on_plateau(lambda: math.nan, factor=1e308, patience=1),
    ],
    ids=["ramp", "ramp of floats", "large factor", "seesaw", "fine seesaw", "plateau"],
)  # fmt: skip
def test_growth_without_end_comes_to_no_number_beyond_those_of_a_float(target):
    assert at(target, 1.0, batch_size=64) == [LARGEST]
