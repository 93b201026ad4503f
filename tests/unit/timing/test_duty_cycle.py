import math
import random
import statistics

import pytest

from adaptbs.timing.duty_cycle import (
    AT_LIMIT,
    AT_ONCE,
    DENSEST,
    EAGER,
    FAR,
    FIRST,
    IDLE,
    KEEP_UP,
    KEPT,
    LEAST_APART,
    OUT_OF_REACH,
    OVER_RUN,
    TRY,
    DutyCycle,
    has_settled,
    measuring_rate,
)
from adaptbs.types import COUPLED, Decision, NoiseScale


def rate(**changed: float) -> float:
    seconds = {"elapsed": 0.0, "spent": 0.0, "seconds_left": 100.0, "step": 1.0, "cost": 1.0} | changed
    return measuring_rate(0.1, **seconds)


def test_a_tenth_of_the_time_for_measurements_that_cost_one_step_or_two():
    assert rate() == pytest.approx(0.1)
    assert rate(cost=2.0) == pytest.approx(0.05)
    assert rate(step=2.0) == pytest.approx(0.2)


def test_a_run_that_is_quicker_than_at_its_first_size_may_spend_that_much_more():
    assert rate(speed=3.0) == pytest.approx(0.3)


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
    assert [duty.measure_next(1000) for _ in range(2 * FIRST)] == [True, False] * FIRST
    duty.calibrate(elapsed=1, spent=1, seconds_left=1, step=1, cost=1)
    assert not any(duty.measure_next(1000) for _ in range(100)), "and here has nothing left to spend then"


def test_a_short_run_cannot_afford_that():
    duty = DutyCycle(0.05)
    assert sum(duty.measure_next(100) for _ in range(100)) < 12  # 5 expected


def test_not_more_than_a_quarter_of_the_budget_goes_at_once():
    duty = DutyCycle(0.05)
    assert sum(duty.measure_next(1000) for _ in range(2 * TRY)) == TRY
    duty.calibrate(elapsed=6, spent=3, seconds_left=594, step=1, cost=1)  # 27 are left
    assert [duty.measure_next(1000) for _ in range(10)] == [True, False] * 5, "8 of 30, by the time 22 are left"
    assert sum(duty.measure_next(1000) for _ in range(10)) < 4


def test_what_a_measurement_costs_counts_as_soon_as_it_is_known():
    short, known = DutyCycle(0.02), DutyCycle(0.02)
    assert sum(short.measure_next(700) for _ in range(2 * FIRST)) < 9, "0.02 x 700 steps pay for 7 of two steps each"
    assert sum(known.measure_next(700) for _ in range(2 * TRY)) == TRY
    known.calibrate(elapsed=6, spent=0.6, seconds_left=694, step=1, cost=0.2)  # 67 are left
    assert sum(known.measure_next(700) for _ in range(2 * FIRST)) > 12


def without_budget(steps: int, *decisions: Decision) -> list[int]:
    """The steps that are measured in a run of a batch that stays, whose budget is spent before it begins."""
    duty = DutyCycle(0.02)
    for decision in decisions:
        duty.decided(decision, decision.batch_size, estimate(low=OUT_OF_REACH * 64))
    duty.calibrate(elapsed=0, spent=steps, seconds_left=steps, step=1, cost=1)
    return [step for step in range(steps) if duty.measure_next(steps, 0, step / steps, steps)]


def test_whatever_the_budget_is_some_are_made_at_once_and_some_over_the_run():
    measured = without_budget(1000)
    assert measured[:AT_ONCE] == list(range(0, 2 * AT_ONCE, 2))
    assert len(measured) == AT_ONCE + OVER_RUN
    assert sum(step < 500 for step in measured) == AT_ONCE + OVER_RUN / 2


def test_they_are_not_more_than_one_in_so_many_steps_of_the_run():
    assert len(without_budget(80)) == 80 / LEAST_APART
    assert len(without_budget(4)) == 1


def test_fewer_are_enough_where_the_batch_is_at_a_limit():
    assert len(without_budget(1000, CAPPED, CAPPED)) == AT_ONCE + AT_LIMIT * OVER_RUN
    assert len(without_budget(1000, *[STAYS] * KEPT)) == AT_ONCE + OVER_RUN, "the noise scale may still grow"


def test_with_a_budget_for_more_they_are_among_them():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=0, spent=0, seconds_left=10_000, step=1, cost=1)
    assert sum(duty.measure_next(10_000, 0, step / 10_000, 10_000) for step in range(10_000)) <= 0.05 * 10_000


def budgeted(left: int, decisions: float) -> DutyCycle:
    """A duty cycle whose start is over, and whose budget pays for so many more measurements of a batch that stays."""
    duty = DutyCycle(0.05)
    for _ in range(KEPT):
        duty.decided(STAYS, 64, estimate())
    duty.measure_next(1000)
    duty._measured = FIRST
    spent = 0.05 * 200 - left
    duty.calibrate(elapsed=100, spent=spent, seconds_left=100, step=1, cost=1, decisions_left=decisions)
    return duty


def test_a_measurement_is_kept_for_each_decision_to_come():
    duty = budgeted(left=8, decisions=8)
    assert not any(duty.measure_next(100) for _ in range(200)), "none is to spare"
    assert measured_at(left=8, decisions=8) == list(range(8))


def measured_at(left: int, decisions: int) -> list[int]:
    """The decisions that something is measured for, where each measures if it may and the budget pays for `left`."""
    silent, measured = 0, []
    for decision in range(decisions):
        duty = budgeted(left - len(measured), decisions - decision)
        silent += 1
        if duty.measure_next(100, awaited=silent):
            measured.append(decision)
            silent = 0
    return measured


def test_a_budget_for_fewer_measurements_than_decisions_is_spread_over_them():
    assert measured_at(left=4, decisions=12) == [2, 5, 8, 10]
    assert measured_at(left=1, decisions=12) == [6]


def test_while_the_batch_may_double_less_of_the_budget_is_counted_on():
    settled, moving = budgeted(left=6, decisions=6), budgeted(left=6, decisions=6)
    moving.decided(Decision(128, "noise scale"), 64, estimate())
    assert settled.measure_next(100, awaited=1)
    assert not moving.measure_next(100, awaited=1)
    assert moving.measure_next(100, awaited=2)


def test_until_a_measurement_has_been_timed_every_second_step_has_none():
    """Where a decision waits at each step, as in a run whose epochs are short and whose length is not known."""
    duty = DutyCycle(0.02)
    chosen = [duty.measure_next(16, awaited=1, steps_at_first=16) for _ in range(64)]
    assert chosen == [True, False] * 32


def test_steps_are_chosen_by_chance_at_twice_the_even_rate_while_the_batch_may_move():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=600, spent=20, seconds_left=40_000, step=1, cost=1)  # 1,010 of the 20,000 s ahead
    chosen = [duty.measure_next(0) for _ in range(5000)]
    assert sum(chosen) == pytest.approx(5000 * EAGER * 0.0505, abs=100)


def test_between_two_looks_at_the_clock_no_more_is_measured_than_is_left():
    duty = DutyCycle(0.05)
    duty.calibrate(elapsed=600, spent=20, seconds_left=400, step=1, cost=1)
    assert sum(duty.measure_next(0) for _ in range(5000)) == 30


def estimate(low: float = 60.0, high: float = 100.0) -> NoiseScale:
    return NoiseScale(1.0, 80.0, low=low, high=high, cautious=70.0, measurements=20)


STAYS, CAPPED = Decision(64, "noise scale"), Decision(64, "max_batch_size")


@pytest.mark.parametrize(
    ("decision", "found", "kept", "settled"),
    [
        (STAYS, estimate(), KEPT, True),
        (STAYS, estimate(), KEPT - 1, False),
        (STAYS, estimate(high=math.inf), KEPT, False),  # in doubt
        (STAYS, None, KEPT, False),
        (CAPPED, estimate(low=OUT_OF_REACH * 64), 1, True),
        (CAPPED, estimate(low=OUT_OF_REACH * 64, high=math.inf), 1, True),  # at least that
        (CAPPED, estimate(low=OUT_OF_REACH * 64), 0, False),  # it has only just got there
        (CAPPED, estimate(low=65), KEPT, False),  # it may fall below the limit again
        (Decision(64, "memory"), estimate(low=OUT_OF_REACH * 64), 1, True),
        (Decision(64, COUPLED), estimate(high=math.inf), 0, True),  # held for good
    ],
)
def test_a_batch_has_settled_where_no_decision_will_move_it(decision, found, kept, settled):
    assert has_settled(decision, found, kept) is settled


def measured_of(steps: int, duty: DutyCycle, steps_in_run: float) -> int:
    duty.calibrate(elapsed=1e6, spent=4e4, seconds_left=1e6, step=1, cost=1)  # 7 % of the half ahead
    return sum(duty.measure_next(steps_in_run) for _ in range(steps))


def test_settled_it_measures_a_quarter_until_the_batch_moves_again():
    duty = DutyCycle(0.05)
    for _ in range(KEPT):
        duty.decided(STAYS, 64, estimate())
    assert measured_of(20_000, duty, 1e9) == pytest.approx(20_000 * IDLE * 0.05, abs=60)
    duty.decided(Decision(128, "noise scale"), 64, estimate())
    assert measured_of(20_000, duty, 1e9) == pytest.approx(20_000 * EAGER * 0.07, abs=200)


def test_settled_in_a_short_run_it_still_measures_enough_to_follow():
    duty = DutyCycle(0.05)
    for _ in range(KEPT):
        duty.decided(STAYS, 64, estimate())
    assert measured_of(20_000, duty, 4000) == pytest.approx(20_000 * KEEP_UP / 4000, abs=100)
    assert measured_of(20_000, duty, 400) == pytest.approx(20_000 * 0.07, abs=150), "but not more than is affordable"


def share_spent(
    overhead: float, steps: int, seed: int, growth: int = 1, *, cost: float = 1.2, early: bool = False, per_step=0.0
) -> float:
    """Measuring over training in a simulated run: noisy costs, a dear first one, a batch that doubles up to `growth`.

    A step of the first size takes a second, one of twice the size 1.1. Decisions come every twentieth of the run and,
    where `early`, after every 8 measurements. Training counts as what it would have taken at the first size, up to 3
    times what it took.
    """

    def speed(size: int) -> float:
        return min(3.0, size / (0.9 + 0.1 * size))

    noise, duty = random.Random(seed), DutyCycle(overhead)
    duty._rng.seed(seed)
    size, done, decided, fresh, silent = 1, 0, 0, 0, 0
    elapsed = spent = 0.0
    costs: list[float] = []
    while done < steps:
        step = 0.9 + 0.1 * size
        due = done + 2 * size - decided >= steps / 20
        if duty.measure_next(steps / size, 0 if fresh else silent + due):
            costs.append(cost * step * noise.lognormvariate(0, 0.3) * (1 if costs else 4))
            spent += costs[-1]
            fresh += 1
        elapsed += speed(size) * step * noise.lognormvariate(0, 0.1)
        done += size
        decide = done - decided >= steps / 20 or (early and fresh >= 8)
        if decide:
            silent = 0 if fresh else silent + 1
            size, decided, fresh = min(2 * size, growth), done, 0
            spent += 0.1  # the decision itself
            step = 0.9 + 0.1 * size
        if decide or len(costs) == TRY:
            cost_now = statistics.median(costs[-16:])
            duty.calibrate(
                elapsed=elapsed, spent=spent, seconds_left=(steps - done) / size * step, step=step, cost=cost_now,
                per_step=per_step, speed=speed(size), decisions_left=20 * (1 - done / steps),
            )  # fmt: skip
    return (spent + per_step * steps) / elapsed


@pytest.mark.parametrize("overhead", [0.02, 0.05])
@pytest.mark.parametrize(("steps", "cost"), [(1000, 0.3), (1000, 1.2), (5000, 0.3), (5000, 2.5), (5000, 5.0)])
def test_the_whole_run_keeps_to_its_budget_and_uses_it(overhead, cost, steps):
    shares = [share_spent(overhead, steps, seed, cost=cost) for seed in range(8)]
    assert max(shares) < overhead + 0.005
    assert statistics.median(shares) > 0.85 * overhead


@pytest.mark.parametrize("per_step", [0.005, 0.012])
def test_the_budget_is_also_for_what_every_step_costs(per_step):
    shares = [share_spent(0.02, 5000, seed, per_step=per_step) for seed in range(8)]
    assert max(shares) < 0.02 + 0.005
    assert statistics.median(shares) > 0.85 * 0.02


def test_a_quarter_of_the_budget_is_for_measuring_however_short_the_steps():
    shares = [share_spent(0.04, 5000, seed, per_step=0.5) - 0.5 for seed in range(8)]
    assert 0.006 < statistics.median(shares) < 0.011


def test_a_dear_measurement_ends_the_dense_start():
    duty = DutyCycle(0.05)
    assert sum(duty.measure_next(1000) for _ in range(2 * TRY)) == TRY
    duty.calibrate(elapsed=6, spent=45, seconds_left=994, step=1, cost=15)
    assert sum(duty.measure_next(1000) for _ in range(100)) == 0


@pytest.mark.parametrize("overhead", [0.02, 0.05])
@pytest.mark.parametrize(("steps", "growth", "early"), [(5000, 4, False), (5000, 8, True), (20_000, 32, False)])
def test_also_where_the_batch_grows_and_the_run_gets_shorter(overhead, steps, growth, early):
    shares = [share_spent(overhead, steps, seed, growth, early=early) for seed in range(8)]
    assert statistics.median(shares) < overhead + 0.003
    assert max(shares) < overhead + 0.01


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
    duty.decided(STAYS, 64, estimate())
    duty.calibrate(elapsed=600, spent=0, seconds_left=400, step=1, cost=1)
    copy.load_state_dict(duty.state_dict())
    assert copy.state_dict() == duty.state_dict()
    assert [copy.measure_next(1000) for _ in range(50)] == [duty.measure_next(1000) for _ in range(50)]


def chosen_steps(duty: DutyCycle, cost: float, settles: bool, *, each: bool) -> list[bool]:
    """The steps of a run with 25 decisions that are measured, each asked for anew or where the duty cycle wants it."""
    steps, decisions = 3000, 25
    due, new, silent, made = 1 / decisions, 0, 0, []
    for i in range(steps):
        done = i / steps
        if done >= due:  # a decision
            if settles and new:
                duty.decided(Decision(64, "max_batch_size"), 64, None)
            due, silent, new = due + 1 / decisions, 0 if new else silent + 1, 0
            spent = cost * sum(made)
            left = decisions * (1 - done)
            duty.calibrate(elapsed=i, spent=spent, seconds_left=steps - i, step=1, cost=cost, decisions_left=left)
        if each and duty._quiet:
            duty.choose_anew()
        awaits = not new and done >= due - 1 / steps
        news_due_at = float("inf") if new or awaits else due - 1 / steps
        made.append(duty.measure_next(steps, 0 if new else silent + awaits, done, steps, news_due_at))
        new += made[-1]
    return made


@pytest.mark.parametrize("cost", [0.4, 1.3, 20.0])
@pytest.mark.parametrize("settles", [False, True])
def test_steps_that_are_alike_are_chosen_as_often_as_if_each_were_asked_for(cost: float, settles: bool) -> None:
    made = {True: [], False: []}
    for each in made:
        for seed in range(20):
            duty = DutyCycle(0.02)
            duty._rng.seed(seed)
            made[each].append(sum(chosen_steps(duty, cost, settles, each=each)))
    asked, ahead = made[True], made[False]
    error = math.sqrt((statistics.variance(asked) + statistics.variance(ahead)) / 20)
    assert statistics.fmean(ahead) == pytest.approx(statistics.fmean(asked), abs=3 * error + 1e-9)
    assert min(ahead) >= 20


def test_a_step_beyond_those_chosen_among_at_once_is_not_chosen() -> None:
    duty = DutyCycle(0.02)
    duty._choose_ahead(1e12, 1e-9)  # one in a billion
    assert (duty._quiet, duty._chosen) == (FAR, False)
    duty._choose_ahead(1e12, 1e-17)  # 1 - 1e-17 is 1
    assert (duty._quiet, duty._chosen) == (FAR, False)


def test_nothing_is_asked_before_most_steps() -> None:
    duty, asked, made = DutyCycle(0.02), 0, 0
    for i in range(3000):
        if i % 120 == 100:
            duty.calibrate(elapsed=i, spent=0.5 * made, seconds_left=3000 - i, step=1, cost=0.5)
        asked += not duty._quiet
        made += duty.measure_next(3000, 0, i / 3000, 3000, math.inf)
    assert made > 80 and asked < 4 * made


def test_steps_chosen_ahead_are_chosen_again_where_their_rate_changes() -> None:
    duty = DutyCycle(0.02)
    for i in range(200):
        duty.measure_next(3000, 0, i / 3000, 3000, math.inf)
    duty.calibrate(elapsed=200, spent=30, seconds_left=2800, step=1, cost=0.5)
    while not duty._quiet:
        duty.measure_next(3000, 0, 0.07, 3000, math.inf)
    duty.decided(Decision(64, "noise scale"), 64, None)
    assert not duty._quiet


@pytest.mark.parametrize(("overhead", "least"), [(0.05, 28), (0.02, 28), (0.01, 18), (0.005, 13)])
def test_a_smaller_overhead_has_fewer_measurements_that_it_does_not_pay_for(overhead: float, least: int) -> None:
    duty, steps = DutyCycle(overhead), 4000
    duty.calibrate(elapsed=1, spent=1000, seconds_left=steps, step=1, cost=1)  # nothing is left of the budget
    made = sum(duty.measure_next(steps, 0, i / steps, steps) for i in range(steps))
    assert made == least
