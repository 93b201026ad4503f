import math
from dataclasses import replace

import numpy as np
import pytest

from adaptbs.decision.policy import (
    CRITICAL_OF_SGD,
    Situation,
    counted_over_simple,
    critical_over_simple,
    decide,
    early_limit,
    efficiency,
    efficiency_floor,
    goodput,
    goodput_optimum,
    largest_at_constant_rate,
    largest_batch_size,
    largest_efficient,
    nearest_power_of_2,
    nearest_to_noise_scale,
    reference_batch_size,
)
from adaptbs.memory.limit import within_memory
from adaptbs.timing.step_time import StepTable, StepTime
from adaptbs.types import Decision, NoiseScale


def known(critical: float, measurements: int = 9) -> NoiseScale:
    """An estimate in no doubt, of this critical batch."""
    phi = critical / CRITICAL_OF_SGD
    return NoiseScale(grad_sq=1.0, trace=phi, low=phi, high=phi, cautious=phi, measurements=measurements)


NOW = Situation(
    noise_scale=known(1000.0), batch_size=64, reference=64, progress=0.5, step_time=None, max_batch_size=4096,
)  # fmt: skip


def test_efficiency_at_the_reference_is_1_and_at_the_noise_scale_nearly_half():
    assert efficiency(1000, 64, 64) == 1
    assert efficiency(1000, 1000, 64) == 1064 / 2000


def test_the_largest_efficient_batch_has_exactly_the_floor():
    assert largest_efficient(1000, 64, 0.8) == pytest.approx((1000 * 0.2 + 64) / 0.8)
    assert efficiency(1000, largest_efficient(1000, 64, 0.8), 64) == pytest.approx(0.8)


def test_the_goodput_optimum():
    assert goodput_optimum(400, StepTime(4, 1)) == 40
    assert goodput_optimum(400, StepTime(0, 1)) == 0  # compute-bound: a larger batch buys no time


@pytest.mark.parametrize("step_time", [None, StepTime(1, 0)])
def test_no_optimum_where_further_samples_are_free_or_not_timed(step_time):
    assert goodput_optimum(400, step_time) == math.inf


@pytest.mark.parametrize(("size", "power"), [(64, 64), (90, 64), (91, 128), (100, 128), (0.3, 1), (0, 1), (-5, 1)])
def test_nearest_power_of_2_is_nearest_in_ratio(size, power):
    assert nearest_power_of_2(size) == power


def test_goodput_stops_at_the_efficiency_floor():
    assert goodput(NOW) == (256, "noise scale")  # 330 samples keep .8; 256 is the nearest power


def test_goodput_does_not_round_up_over_the_floor():
    # 480 samples keep .8, 512 is the nearest power, but too inefficient
    assert goodput(replace(NOW, noise_scale=known(1600))) == (256, "noise scale")


def test_goodput_stops_where_the_step_time_makes_more_useless():
    assert goodput(replace(NOW, step_time=StepTime(4, 1))) == (64, "step time")  # sqrt(4 * 1000) = 63


def test_the_noise_scale_target_is_the_noise_scale():
    now = replace(NOW, noise_scale=known(1000 * CRITICAL_OF_SGD), batch_size=512)
    assert nearest_to_noise_scale(now) == (1024, "noise scale")
    assert decide(now, "noise_scale") == Decision(1024, "noise scale")


def test_where_progress_counts_the_floor_falls():
    assert efficiency_floor(0.0, by_progress=True, adaptive=True) == 0.7
    assert efficiency_floor(0.5, by_progress=True, adaptive=True) == pytest.approx(0.55)
    assert efficiency_floor(1.2, by_progress=True, adaptive=True) == pytest.approx(0.4)
    assert efficiency_floor(0.5, by_progress=True, adaptive=False) == pytest.approx(0.35)
    assert efficiency_floor(0.5, by_progress=False, adaptive=False) == 0.8
    assert goodput(replace(NOW, floor=0.5)) == (1024, "noise scale")  # 1,128 samples keep .5


def test_a_sample_is_counted_by_a_third_of_the_critical_batch():
    for adaptive in (True, False):
        assert counted_over_simple(adaptive) == pytest.approx(critical_over_simple(adaptive) / 3)


def test_the_batch_keeps_what_the_end_of_the_run_requires_as_it_is_counted():
    now = replace(NOW, floor=0.4, counted=CRITICAL_OF_SGD / 2)  # 500 samples, while the critical batch is 1,000
    assert goodput(now) == (1024, "noise scale")  # 1,660 samples keep .4, 2,048 do not
    assert goodput(replace(now, required=0.5)) == (512, "noise scale")  # 628 samples are counted .5 each
    assert goodput(replace(now, required=0.2)) == (1024, "noise scale")


def test_the_most_progress_per_second_is_progress_as_it_is_counted():
    now = replace(NOW, step_time=StepTime(16, 1))
    assert goodput(now) == (128, "step time")  # sqrt(16 * 1000) = 126
    assert goodput(replace(now, counted=CRITICAL_OF_SGD / 4)) == (64, "step time")  # sqrt(16 * 250) = 63


def test_a_table_of_step_times_is_searched_up_to_one_size_that_has_not_been_run():
    flat = StepTable((64, 128, 256), (1.0, 1.0, 1.0))
    steep = StepTable((64, 128, 256), (1.0, 1.0, 4.0))  # 256 takes four times as long as 128
    assert goodput_optimum(1e6, flat) == 512
    assert goodput_optimum(1e6, steep) == 128


def test_a_decision_at_most_doubles():
    assert decide(NOW, "goodput") == Decision(128, "pace")
    assert decide(replace(NOW, batch_size=128), "goodput") == Decision(256, "noise scale")


def test_below_the_reference_a_decision_may_leap_up_to_it():
    assert decide(replace(NOW, batch_size=8), "goodput") == Decision(64, "pace")
    assert decide(replace(NOW, batch_size=8, reference=32), "goodput") == Decision(32, "pace")
    assert decide(replace(NOW, batch_size=8, step_time=StepTime(0, 1)), "goodput").batch_size <= 8  # buys no time


@pytest.mark.parametrize(("base", "kept", "most"), [(16, 16, 512), (64, 64, 2048), (256, 64, 2048), (1024, 64, 8192)])
def test_what_the_run_must_keep_and_how_far_hyperparameters_transfer(base, kept, most):
    assert (reference_batch_size(base), largest_batch_size(base)) == (kept, most)


@pytest.mark.parametrize("unknown", [None, known(1000, measurements=3)])
def test_few_measurements_hold_the_batch(unknown):
    assert decide(replace(NOW, noise_scale=unknown), "goodput") == Decision(64, "few measurements")


def test_a_decision_does_not_depend_on_how_often_was_measured():
    rarely, often = replace(known(1600), cautious=1600 / CRITICAL_OF_SGD / 1.9), known(1600, measurements=900)
    assert goodput(replace(NOW, noise_scale=rarely)) == goodput(replace(NOW, noise_scale=often))


def test_an_estimate_that_strays_is_believed_up_to_twice_its_cautious_limit():
    phi = 500 / CRITICAL_OF_SGD
    strays = replace(known(1e9), cautious=phi)
    assert goodput(replace(NOW, noise_scale=strays)) == goodput(replace(NOW, noise_scale=known(1000)))


def test_four_measurements_are_enough():
    assert decide(replace(NOW, noise_scale=known(1000, measurements=4)), "goodput") == Decision(128, "pace")


def test_an_estimate_without_a_lower_limit_holds_the_batch():
    assert decide(replace(NOW, noise_scale=replace(known(1000), cautious=0.0)), "goodput") == (
        Decision(64, "unresolved")
    )


def test_an_upper_limit_below_the_batch_is_no_doubt_even_without_a_lower_one():
    """As of an autoencoder whose samples all pull the same way: more measurements would change nothing."""
    barely = NoiseScale(grad_sq=1.2, trace=0.007, low=0.0, high=0.0094, cautious=0.0, measurements=12)
    assert decide(replace(NOW, noise_scale=barely), "goodput") == Decision(64, "noise scale")
    assert decide(replace(NOW, noise_scale=replace(barely, high=65.0)), "goodput") == Decision(64, "unresolved")


def test_a_batch_that_proves_too_large_is_taken_back_early():
    now = replace(NOW, noise_scale=known(100), batch_size=512)  # 105 samples keep .8
    assert decide(replace(now, progress=0.4), "goodput") == Decision(256, "pace")
    assert decide(replace(now, progress=0.4, batch_size=128), "goodput").batch_size == 64
    assert decide(replace(now, progress=0.41), "goodput").batch_size == 512


def test_a_batch_that_is_slower_than_a_smaller_one_is_taken_back_at_any_time():
    now = replace(NOW, noise_scale=known(1000), progress=0.6, batch_size=256, step_time=StepTime(0, 1))
    assert decide(now, "goodput") == Decision(128, "pace")
    assert decide(replace(now, batch_size=128), "goodput") == Decision(64, "step time")
    assert decide(replace(now, batch_size=64), "goodput") == Decision(64, "step time")
    nearly = replace(now, batch_size=129, step_time=StepTime(0.125, 0.25), noise_scale=known(22188, 9))
    assert decide(nearly, "goodput").batch_size == 129, "128 is the power of 2 nearest to the fastest, which is 149"


def test_a_batch_is_not_taken_back_below_the_reference():
    now = replace(NOW, noise_scale=known(1), progress=0.1, batch_size=32)
    assert decide(replace(now, reference=16), "goodput").batch_size == 16
    assert decide(replace(now, batch_size=64), "goodput").batch_size == 64


def test_shrinking_does_not_raise_a_batch_that_is_below_the_reference_already():
    now = replace(NOW, progress=0.1, batch_size=32, step_time=StepTime(0, 1))  # compute-bound: 1 is best
    assert decide(now, "goodput").batch_size == 32


def test_limits_hold_for_every_target():
    for target in ("goodput", "noise_scale", lambda *_: 10_000):
        assert decide(replace(NOW, max_batch_size=100), target) == Decision(100, "max_batch_size")


def test_memory_goes_before_every_wish():
    assert within_memory(Decision(100, "max_batch_size"), 90.5) == Decision(90, "memory")
    assert within_memory(Decision(90, "noise scale"), 90.5) == Decision(90, "noise scale")


def test_a_function_is_asked_with_all_that_is_known_and_may_leap():
    def target(estimate, batch_size, progress):
        assert (estimate, batch_size, progress) == (NOW.noise_scale, 64, 0.5)
        return 1000.9

    assert decide(NOW, target) == Decision(1000, "target")


def test_a_function_is_told_a_progress_of_at_most_1():
    asked = []
    decide(replace(NOW, progress=1.5), lambda *now: asked.append(now[2]) or 64)  # the second epoch of an unknown number
    assert asked == [1.0]


def test_a_function_is_asked_even_when_nothing_is_measured():
    assert decide(replace(NOW, noise_scale=None), lambda noise_scale, *_: 32) == Decision(32, "target")


@pytest.mark.parametrize("wanted", [np.int64(128), np.float32(128)])
def test_a_function_may_return_a_numpy_number(wanted):
    decision = decide(NOW, lambda *_: wanted)
    assert decision == Decision(128, "target")
    assert type(decision.batch_size) is int


def test_a_function_may_ask_for_more_than_a_float_can_say():
    assert decide(replace(NOW, max_batch_size=512), lambda *now: 10**400) == Decision(512, "max_batch_size")


def test_the_batch_stays_small_in_the_first_tenth_of_a_run():
    assert early_limit(0.05, 64) == 128
    assert early_limit(0.05, 16) == 32
    assert early_limit(0.05, 256) == 256  # what hyperparameters are stated for is not taken back
    assert early_limit(0.1, 64) == math.inf
    soon = replace(NOW, batch_size=128, progress=0.05, early_limit=128)
    assert decide(soon, "goodput") == Decision(128, "early")
    assert decide(replace(soon, batch_size=256), "goodput").batch_size == 128


def test_until_a_warm_up_is_over_the_batch_grows_on_a_clear_estimate_only():
    assert {early_limit(share, 64, clear=False) for share in (0.0, 0.1, 0.24)} == {128}
    assert early_limit(0.1, 64, clear=True) == math.inf
    assert early_limit(0.25, 64, clear=False) == math.inf


@pytest.mark.parametrize(("base", "most"), [(16, 64), (64, 256), (256, 256), (1024, 1024)])
def test_how_far_sgd_goes_at_a_constant_rate(base, most):
    assert largest_at_constant_rate(base) == most


def test_nothing_is_decided_twice_on_the_same_measurements():
    assert decide(replace(NOW, new_measurements=0), "goodput") == Decision(64, "nothing new")
    assert decide(replace(NOW, new_measurements=0), lambda *_: 100).batch_size == 100
