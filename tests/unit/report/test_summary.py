import math

import pytest

from adaptbs.report.history import History
from adaptbs.report.summary import summary_of_run
from adaptbs.report.trade_off import samples_ratio, steps_ratio, trade_off_of_run
from adaptbs.timing import Spent
from adaptbs.timing.step_time import StepTime

STEP_TIME = StepTime(1.0, 0.0)  # a step takes a second, whatever its size


def history(*decisions: tuple[int, int, str], batches_per_step: int = 1) -> History:
    made = History()
    made.add(event="start", samples=0, batch_size=10, global_batch_size=10 * batches_per_step, reason="start")
    for samples, size, reason in decisions:
        made.add(event="measurement", samples=samples - 1, batch_size=2)
        made.add(
            event="decision", samples=samples, batch_size=size, global_batch_size=size * batches_per_step,
            reason=reason, lr_factor=1.414, progress=samples / 1000, noise_scale=241.2, low=129.0, high=977.0,
        )  # fmt: skip
    return made


def summary(made: History, step_time=STEP_TIME, planned: float = 1000.0):
    spent = Spent(2.0, 0.02)
    return summary_of_run(
        made.decisions(), samples=1000, planned_samples=planned, step_time=step_time, spent=spent
    )  # fmt: skip


GROWN = history((200, 20, "pace"), (400, 20, "nothing new"), (600, 40, "step time"))


def test_the_seconds_are_those_of_the_steps_made_and_of_measuring():
    made = summary(GROWN)
    # 200 samples in tens, 400 in twenties, 400 in forties: 20 + 20 + 10 steps of a second, and 2 seconds of measuring.
    assert (made.seconds, made.fixed_seconds, made.saved) == (52.0, 100.0, 48.0)


def test_where_a_run_ends_by_its_progress_a_fixed_batch_needs_fewer_samples():
    assert summary(GROWN, planned=600.0).fixed_seconds == 60.0


def test_it_prints_a_table_in_words():
    assert repr(summary(GROWN)) == (
        "The batch size went from 10 to 40 over 1,000 samples. It changed 2 times:\n"
        "\n"
        "done  samples  batch size       noise scale  lr times  reason\n"
        "20 %      200    10 -> 20  241 (129 to 977)      1.41  on its way, step by step\n"
        "60 %      600    20 -> 40  241 (129 to 977)      1.41  a larger batch would save no time here\n"
        "\n"
        "Measuring and deciding took 2 s, 2.0 % of the time at the first batch size.\n"
        "By this run's own step times it took 52 s with that, and a fixed batch of 10\n"
        "would have taken 100 s for as much of the plan: 48 % of the time saved."
    )


def test_time_that_was_lost_is_said():
    made = summary(GROWN, StepTime(0.0, 0.1))
    assert made.saved < 0
    assert repr(made).endswith("2 % of the time lost.")


def test_a_batch_that_stayed_is_one_line_and_its_cost():
    made = summary(history((200, 10, "step time")), step_time=None)
    assert (made.changes, made.saved) == ((), None)
    assert repr(made) == (
        "The batch size stayed 10 over 1,000 samples (a larger batch would save no time here).\n"
        "Measuring and deciding took 2 s, 2.0 % of the time at the first batch size."
    )


def test_step_times_that_are_not_known_are_said_to_be():
    made = summary(GROWN, step_time=None)
    assert made.saved is None
    assert repr(made).endswith("The time saved is not known: too few steps of two batch sizes were timed.")


def test_steps_of_several_batches_are_counted_as_steps():
    made = summary(history((500, 20, "pace"), batches_per_step=5))
    assert (made.seconds, made.fixed_seconds) == (2.0 + 10 + 5, 20.0)
    assert "a fixed batch of 10 (50 a step)" in repr(made)
    assert [(change.before, change.after) for change in made.changes] == [(10, 20)]


def test_without_a_known_length_and_estimate_the_cells_are_empty():
    made = History()
    made.add(event="start", samples=0, batch_size=10, global_batch_size=10, reason="start")
    made.add(event="out of memory", samples=500, batch_size=5, global_batch_size=5, reason="memory", lr_factor=1.0)
    shown = repr(summary(made, step_time=None))
    assert "          500     10 -> 5                   1.00  as large as memory holds" in shown
    assert "None" not in shown and "nan" not in shown


def test_a_fixed_batch_that_would_have_done_is_named():
    # phi is 241.2: at 40 a sample brings more than 80 % of what it brings at 10, by the lower limit of 129 too.
    decisions = GROWN.decisions()
    found = trade_off_of_run(decisions, STEP_TIME, largest=1000)
    made = summary_of_run(
        decisions, samples=1000, planned_samples=1000, step_time=STEP_TIME, spent=Spent(2.0, 0.02), trade_off=found
    )
    size, samples, seconds = made.instead
    assert size == found.suggested == 40
    assert samples == pytest.approx(samples_ratio(found.phi, 40, 10))
    assert seconds == pytest.approx(100 * steps_ratio(found.phi, 40, 10))
    assert repr(made).splitlines()[-2:] == [
        "A fixed batch of 40 would have done too, as the noise scale predicts: with 1.12 times the",
        "samples of 10, in 28 s.",
    ]


def test_that_no_larger_fixed_batch_would_have_done_is_said():
    decisions = GROWN.decisions() | {"low": [None, 1.0, 1.0, 1.0]}
    found = trade_off_of_run(decisions, STEP_TIME, largest=1000)
    assert found.suggested == 10
    made = summary_of_run(
        decisions, samples=1000, planned_samples=1000, step_time=STEP_TIME, spent=Spent(2.0, 0.02), trade_off=found
    )
    assert made.instead is None
    assert repr(made).splitlines()[-1] == (
        "A larger fixed batch might not have done: it may need over 1.25 times the samples of 10."
    )


@pytest.mark.parametrize("reason", ["few measurements", "unresolved"])
def test_a_batch_that_stayed_for_want_of_measurements_says_what_to_do(reason):
    assert repr(summary(history((200, 10, reason)))).splitlines()[-1] == (
        "Too little was measured to decide. A longer run, or a larger `overhead=`, measures more."
    )


def test_an_estimate_without_an_upper_limit_is_shown_since_it_decided():
    made = history((200, 20, "pace"))
    made.records[-1] |= {"low": 8.4, "high": math.inf}
    assert summary(made).changes[0].noise_scale == "241 (8 or more)"
    made.records[-1] |= {"noise_scale": None}
    assert summary(made).changes[0].noise_scale == "at least 8"


def test_what_was_not_measured_suggests_no_other_batch():
    made = summary(GROWN)
    assert made.instead is None
    assert "would have done" not in repr(made)


@pytest.mark.parametrize("reason", ["noise scale cannot be measured", "samples are coupled"])
def test_a_doubt_that_holds_the_batch_at_the_end_is_told(reason):
    grown_and_held = repr(summary(history((200, 20, "noise scale"), (400, 20, reason)))).splitlines()
    assert f"At the end it was held: {reason}." in grown_and_held
    stayed = repr(summary(history((200, 10, reason))))
    assert "At the end" not in stayed and "Too little" not in stayed
