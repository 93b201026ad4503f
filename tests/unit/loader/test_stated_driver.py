import pytest

from adaptbs.loader.call_interval import StatedInterval
from adaptbs.loader.learnt_driver import LearntDriver
from adaptbs.loader.stated_driver import StatedDriver


def stated(batches_per_step: int = 1) -> StatedDriver:
    """A fixed run of ten batches of 4, whose schedule steps at each optimizer step."""
    return StatedDriver(4, 40, 10, StatedInterval(1, batches_per_step, epoch_steps=10))


def deliver(driver: StatedDriver, *sizes: int) -> list[int]:
    """Deliver batches of an epoch, and return the steps of a call after each."""
    at, steps = 0, []
    driver.begin_iteration()
    for size in sizes:
        driver.moved(at, at + size)
        at += size
        steps.append(driver.take_steps())
    driver.end_iteration()
    return steps


def test_a_call_makes_the_steps_that_the_fixed_run_has_made():
    assert deliver(stated(), 4, 8, 16) == [1, 2, 4]


def test_the_first_of_several_calls_makes_all_that_are_due():
    driver = stated()
    deliver(driver, 4, 4)  # by which it is known that the loop calls at every step
    driver.begin_iteration()
    for before, after in ((8, 12), (12, 20), (20, 36)):
        driver.moved(before, after)
    assert [driver.take_steps() for _ in range(3)] == [7, 0, 0]


def test_what_an_epoch_leaves_of_an_optimizer_step_is_one_too():
    # 10 batches, 3 to a step, are 4 steps: after batches 3, 6, 9, and of the one left. 4 + 36 samples are all 10.
    assert deliver(stated(batches_per_step=3), 12, 24, 4) == [1, 2, 1]


def test_calls_between_epochs_are_one_step_each_and_are_said_to_be():
    driver, said = stated(), []
    driver.on_call(said.append)
    for _ in range(2):
        driver.begin_iteration()
        driver.moved(0, 40)
        driver.end_iteration()
        assert driver.take_steps() == 1
    assert said == [None, None]


def test_what_calls_count_is_said_once():
    driver, said = stated(batches_per_step=2), []
    driver.on_call(said.append)
    deliver(driver, 8, 8)
    assert said == [2.0]


def at_every(driver: StatedDriver, m: int, sizes: list[int]) -> list[int]:
    """Deliver batches, call after each m-th, and return the steps of these calls."""
    at, steps = 0, []
    driver.begin_iteration()
    for i, size in enumerate(sizes, 1):
        driver.moved(at, at + size)
        at += size
        if i % m == 0:
            steps.append(driver.take_steps())
    driver.end_iteration()
    return steps


@pytest.mark.parametrize("m", [2, 3])
def test_a_loop_that_calls_at_every_mth_step_only_is_followed(m):
    """Each of its calls had made all steps that were due, as soon as the batch had grown."""
    driver, said = stated(), []
    driver.on_call(said.append)
    assert at_every(driver, m, 2 * m * [4] + m * [8] + m * [16] + m * [4]) == [1, 1, 2, 4, 1]
    assert said == [m]


def test_a_loop_that_calls_seldom_is_followed_where_the_batch_has_grown_before_its_first_call():
    assert at_every(stated(), 4, [4, 4, 8, 8, *4 * [8], *4 * [16]]) == [1, 2, 4]


def test_steps_that_a_loss_scale_left_out_at_first_are_no_interval():
    driver = stated()
    for before, after, calls in ((0, 4, 0), (4, 8, 0), (8, 12, 1), (12, 16, 1), (16, 20, 1)):
        driver.moved(before, after)
        driver.begin_iteration()
        assert [driver.take_steps() for _ in range(calls)] == calls * [1]
        driver.end_iteration()
    assert deliver(driver, 4, 8, 16) == [1, 2, 4]


def test_a_call_at_the_last_batch_of_each_epoch_is_one_step():
    driver, said = stated(), []
    driver.on_call(said.append)
    assert at_every(driver, 10, 10 * [4]) == [1]
    assert at_every(driver, 5, 5 * [8]) == [1]
    assert said == [None]


def test_a_driver_goes_on_from_its_state():
    driver, other = stated(), stated()
    deliver(driver, 4, 4)
    driver.begin_iteration()
    driver.moved(0, 16)
    other.load_state_dict(driver.state_dict())
    other.begin_iteration()
    assert driver.take_steps() == 4
    other.moved(16, 20)
    assert other.take_steps() == 5


def test_a_state_of_a_loop_whose_calls_were_learnt_is_taken_up_and_the_other_way_round():
    learnt, driver = LearntDriver(4, 40, 10), stated()
    for each in (learnt, driver):
        each.begin_iteration()
        each.moved(0, 12)
    for one, other in ((learnt, stated()), (driver, LearntDriver(4, 40, 10))):
        other.load_state_dict(one.state_dict())
        assert other.state_dict().items() >= {"at": 12, "passed": 3, "batches": 1, "iteration": 1}.items()
