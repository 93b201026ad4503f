"""The checks of measured steps: gradients accumulated unsaid, and rows that are not samples."""

from __future__ import annotations

from types import SimpleNamespace

from adaptbs.run.holds import ACCUMULATES, NOT_SAMPLES, Holds
from adaptbs.run.measurement_checks import ALIKE, MeasurementChecks
from adaptbs.types import COUPLED, Measurement, SquaredNorms


def checks() -> tuple[MeasurementChecks, Holds]:
    holds = Holds()
    return MeasurementChecks(SimpleNamespace(holds=holds, batches_per_step=1), world_size=1), holds


def measured(samples: int = 8, **doubts) -> Measurement:
    return Measurement(SquaredNorms(1, 2.0, samples, 1.0), "in step", "a test", **doubts)


def test_several_steps_of_two_batches_are_accumulation():
    check, holds = checks()
    for _ in range(ALIKE - 1):
        check.look_at_the_step(measured(samples=8), [4, 4], is_whole=True)
    assert holds.reason is None
    check.look_at_the_step(measured(samples=8), [4, 4], is_whole=True)
    assert holds.reason == ACCUMULATES


def test_the_end_of_a_step_is_no_step():
    check, holds = checks()
    made = check.look_at_the_step(measured(samples=8), [4, 4], is_whole=False)
    assert made.may_be_part and made.watch_next
    assert holds.reason is None


def test_a_step_of_the_latest_batch_alone_is_no_accumulation():
    check, holds = checks()
    for _ in range(2 * ALIKE):
        check.look_at_the_step(measured(samples=4), [4, 4], is_whole=True)
    assert holds.reason is None


def test_rows_that_are_not_samples_hold_the_batch_until_several_measurements_are_right():
    check, holds = checks()
    check.look(measured(wrong=True, caveat="8 rows of 4 samples"))
    for _ in range(ALIKE - 1):
        check.look(measured())
        assert holds.reason == NOT_SAMPLES
    check.look(measured())
    assert holds.reason is None


def test_a_loss_that_couples_samples_holds_the_batch_by_itself():
    check, holds = checks()
    check.look(measured(wrong=True, caveat=COUPLED))
    assert holds.reason is None
