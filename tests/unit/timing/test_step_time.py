import pytest

from adaptbs.timing.step_time import ENOUGH, KEEP, WARM_UP, StepTime, StepTimes


def timed(*steps: tuple[int, float], each: int = 1) -> StepTimes:
    """Step times of a run that is warm already, as are its sizes."""
    times = StepTimes()
    firsts = [(size, 99.0) for size in dict(steps)]
    for size, seconds in [(1, 99.0)] * WARM_UP + firsts + list(steps) * each:
        times.add((size, seconds))
    return times


def test_a_step_costs_a_fixed_time_and_a_time_per_sample():
    assert StepTime(a=2, b=0.5)(4) == 4


def test_the_first_steps_are_left_out():
    assert timed().median(1) is None


def test_the_first_step_of_a_size_is_left_out():
    times = StepTimes()
    times.add(*[(8, 99.0)] * WARM_UP, (8, 1.0), (16, 99.0))
    assert (times.median(8), times.median(16)) == (1.0, None)
    times.add((16, 2.0))
    resumed = StepTimes()
    resumed.load_state_dict(times.state_dict())
    resumed.add((16, 2.2), (32, 99.0))
    assert (resumed.median(16), resumed.median(32)) == (2.1, None)


def test_a_size_of_which_little_is_known_is_not_given_by_its_tuning():
    """With cudnn.benchmark the first step at a size takes as long as many others."""
    times = StepTimes()
    times.add(*[(8, 1.0)] * (WARM_UP + ENOUGH), (16, 40.0), *[(16, 1.5)] * ENOUGH)
    fitted = times.fit()
    assert times.median(16) == 1.5 and (fitted(8), fitted(16)) == pytest.approx((1.0, 1.5))


def test_the_median_ignores_a_hiccup():
    assert timed((8, 1.0), (8, 50.0), (8, 1.2)).median(8) == 1.2


def test_only_the_latest_steps_count():
    assert timed(*[(8, 1.0)] * KEEP, *[(8, 2.0)] * KEEP).median(8) == 2


def test_one_size_does_not_make_a_line():
    assert timed((8, 1.0), (8, 1.1), each=ENOUGH).fit() is None


def test_the_line_through_two_sizes():
    fitted = timed((10, 3.0), (20, 4.0), each=ENOUGH).fit()
    assert (fitted.a, fitted.b) == pytest.approx((2, 0.1))


def test_the_line_through_four_sizes_that_lie_on_it():
    fitted = timed(*[(size, 0.004 + 1e-6 * size) for size in (64, 128, 256, 512)], each=ENOUGH).fit()
    assert (fitted.a, fitted.b) == pytest.approx((0.004, 1e-6))


def test_a_size_run_a_few_times_is_left_out():
    # An epoch's short last batch, with a hiccup, should not move the line.
    steps = [(10, 3.0)] * ENOUGH + [(30, 5.0)] * ENOUGH + [(20, 50.0)] * (ENOUGH - 1)
    assert timed(*steps).fit() == timed(*steps[: 2 * ENOUGH]).fit()


def test_errors_count_relative_to_the_time_of_a_step():
    # 1 s off at 2 s matters, at 200 s it does not: the line passes nearer to the quick step.
    fitted = timed((1, 3.0), (100, 101.0), (200, 201.0), each=ENOUGH).fit()  # two lie on 1 + B, the first is 1 s above
    assert fitted(1) == pytest.approx(3, rel=0.01)


def test_larger_batches_that_seem_faster_are_taken_to_be_as_fast():
    assert timed((10, 4.0), (20, 2.0), each=ENOUGH).fit() == StepTime(3, 0)


def test_a_step_without_a_sample_never_takes_less_than_no_time():
    fitted = timed((10, 1.0), (20, 4.0), each=ENOUGH).fit()
    assert fitted.a == 0
    assert fitted.b == pytest.approx((1 / 10 + 4 / 20) / 2)


def test_step_times_go_on_from_their_state():
    times, copy = timed((10, 3.0), (20, 4.0)), StepTimes()
    copy.load_state_dict(times.state_dict())
    copy.add((10, 3.0))  # warm already, so this one counts
    times.add((10, 3.0))
    assert copy.state_dict() == times.state_dict()
    assert copy.fit() == times.fit()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_clock_that_stands_still_or_goes_back_times_nothing(seconds):
    times = timed((8, 1.0), (16, 2.0), each=20)
    usual = times.fit()
    times.add(*[(8, seconds), (16, seconds), (32, seconds)] * 50)
    assert times.fit() == usual
    assert times.median(32) is None
