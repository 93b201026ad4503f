import random

import pytest

from adaptbs.duty_cycle import DENSEST, FIRST, DutyCycle, measuring_rate


def rate(**changed: float) -> float:
    seconds = {"elapsed": 0.0, "spent": 0.0, "seconds_left": 100.0, "step": 1.0, "cost": 1.0} | changed
    return measuring_rate(0.1, **seconds)


def test_a_tenth_of_the_time_for_measurements_that_cost_one_step_or_two():
    assert rate() == pytest.approx(0.1)
    assert rate(cost=2.0) == pytest.approx(0.05)
    assert rate(step=2.0) == pytest.approx(0.2)


def test_what_has_been_spent_is_made_up_for_in_half_of_what_is_left():
    # 100 of 200 s done: 15 s may be spent by 150 s, and 10 have been: on schedule. 12.5 have been: half the rate.
    assert rate(elapsed=100.0, spent=10.0) == pytest.approx(0.1)
    assert rate(elapsed=100.0, spent=12.5) == pytest.approx(0.05)


@pytest.mark.parametrize("changed", [{"spent": 5.0}, {"spent": 6.0}, {"seconds_left": 0.0}])
def test_nothing_is_measured_where_nothing_is_left(changed):
    assert rate(**changed) == 0


def test_at_most_every_second_step_is_measured():
    assert rate(cost=0.01) == DENSEST


def test_no_overhead_means_no_measurement():
    duty = DutyCycle(0)
    assert not any(duty.measure_next(1000) for _ in range(1000))


def test_a_long_run_begins_with_every_second_step():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=1, spent=1, seconds_left=1, step=1, cost=1)  # and here has nothing left to spend then
    first = [duty.measure_next(1000) for _ in range(2 * FIRST + 100)]
    assert first == [True, False] * FIRST + [False] * 100


def test_a_short_run_cannot_afford_that():
    duty = DutyCycle(0.05)
    assert sum(duty.measure_next(100) for _ in range(100)) < FIRST + 4  # 5 expected


def test_steps_are_chosen_by_chance_as_often_as_the_rate_says():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=600, spent=20, seconds_left=400, step=1, cost=1)  # 20 of the 200 s ahead
    chosen = [duty.measure_next(0) for _ in range(5000)]
    assert sum(chosen) == pytest.approx(500, abs=100)


def test_a_budget_already_spent_stops_measuring():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=500, spent=50, seconds_left=500, step=1, cost=1)
    assert duty.measure_next(0), "the first step is always measured"
    assert not any(duty.measure_next(0) for _ in range(1000))


@pytest.mark.parametrize(("step", "cost"), [(0.0, 1.0), (1.0, 0.0)])
def test_times_too_short_to_be_seen_change_nothing(step, cost):
    duty = DutyCycle(0.05)
    before = duty.state_dict()
    duty.calibrate(elapsed=1, spent=0, seconds_left=1, step=step, cost=cost)
    assert duty.state_dict() == before


def test_training_does_not_notice_the_coin():
    before = random.getstate()
    DutyCycle(0.05).measure_next(0)
    assert random.getstate() == before


def test_the_coin_goes_on_from_its_state():
    duty, copy = DutyCycle(0.3), DutyCycle(0.3)
    for _ in range(10):
        duty.measure_next(1000)
    copy.load_state_dict(duty.state_dict())
    assert [copy.measure_next(1000) for _ in range(50)] == [duty.measure_next(1000) for _ in range(50)]
