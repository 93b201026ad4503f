import math

import pytest

from adaptbs.report.trade_off import (
    mean_over_run,
    samples_ratio,
    steps_ratio,
    time_ratio,
    trade_off_at,
    trade_off_of_run,
)
from adaptbs.timing.step_time import StepTime


def test_by_hand_at_the_noise_scale():
    # phi = 300: a batch of 100 takes 1 + 3 = 4 times the fewest steps, one of 300 takes 2.
    assert steps_ratio(300, 300, 100) == pytest.approx(2 / 4)
    assert samples_ratio(300, 300, 100) == pytest.approx(3 * 2 / 4)
    assert time_ratio(300, 300, 100, StepTime(1, 0.01)) == pytest.approx(2 / 4 * 4 / 2)


def test_far_below_the_noise_scale_twice_the_batch_is_half_the_steps_of_as_many_samples():
    assert steps_ratio(1e9, 128, 64) == pytest.approx(1 / 2)
    assert samples_ratio(1e9, 128, 64) == pytest.approx(1)
    assert (steps_ratio(math.inf, 128, 64), samples_ratio(math.inf, 128, 64)) == (1 / 2, 1)


def test_far_above_it_it_is_as_many_steps_of_twice_the_samples():
    assert steps_ratio(1e-9, 128, 64) == pytest.approx(1)
    assert samples_ratio(1e-9, 128, 64) == pytest.approx(2)
    assert (steps_ratio(0, 128, 64), samples_ratio(0, 128, 64)) == (1, 2)


@pytest.mark.parametrize(("phi", "size"), [(20.0, 8), (20.0, 700), (1e4, 64)])
def test_the_hyperbola_of_steps_and_samples(phi, size):
    # (S/S_min - 1)(E/E_min - 1) = 1, with S_min = 1 and E_min = phi (McCandlish et al. 2018, eq. 2.11)
    s0 = 1 + phi / 64
    steps, samples = steps_ratio(phi, size, 64) * s0, samples_ratio(phi, size, 64) * 64 * s0
    assert (steps - 1) * (samples / phi - 1) == pytest.approx(1)


def test_limits_of_the_noise_scale_are_limits_of_the_ratios_in_order():
    found = trade_off_at(300.0, 100.0, math.inf, base_batch_size=100, largest=10**6, step_time=StepTime(1, 0.01))
    rows = {row.batch_size: row for row in found.rows}
    assert rows[200].steps == pytest.approx((5 / 8, 1 / 2, 3 / 4))  # at 300, inf, 100
    assert rows[50].steps == pytest.approx((7 / 4, 3 / 2, 2))
    assert rows[200].samples == pytest.approx((5 / 4, 1, 3 / 2))
    assert rows[200].time == pytest.approx((15 / 16, 3 / 4, 9 / 8))
    assert rows[100].steps == rows[100].samples == rows[100].time == (1, 1, 1)


def test_the_rows_go_by_the_critical_batch_and_the_noise_scale_stays_what_it_is():
    plain = trade_off_at(400.0, 200.0, 2000.0, base_batch_size=64, largest=10**6, step_time=StepTime(1, 0.01))
    found = trade_off_at(
        100.0, 50.0, 500.0, base_batch_size=64, largest=10**6, step_time=StepTime(1, 0.01), critical_over_simple=4
    )
    assert found.rows == plain.rows
    assert (found.phi, found.critical, plain.critical) == (100, 400, 400)
    assert "noise scale 100 (50 to 500), critical batch 4 times that:" in str(found)
    assert "critical" not in str(plain)


def test_the_mean_over_a_run_is_that_of_the_critical_batch():
    columns = {
        "global_batch_size": [64, 64, 256], "samples": [0, 640, 1280], "noise_scale": [None, 100.0, 200.0],
        "low": [None, 50.0, 100.0], "high": [None, 400.0, 800.0],
    }  # fmt: skip
    found = trade_off_of_run(columns, None, largest=10**6, critical_over_simple=4)
    assert found.phi == pytest.approx(mean_over_run([640, 640], [64, 64], [400, 800]) / 4)
    assert found.low == pytest.approx(mean_over_run([640, 640], [64, 64], [200, 400]) / 4)


@pytest.mark.parametrize(
    ("base", "phi", "largest", "sizes"),
    [
        (64, 300.0, 10**6, [16, 32, 64, 128, 256, 512, 1024, 2048]),  # to the first that reaches 4 phi
        (64, 300.0, 1000, [16, 32, 64, 128, 256, 512]),
        (64, 3.0, 10**6, [16, 32, 64, 128, 256, 512]),  # three above at least
        (50, 3.0, 10**6, [25, 50, 100, 200, 400]),  # 12.5 is no batch
        (1, 3.0, 10**6, [1, 2, 4, 8, 16]),
        (64, 300.0, 10, [16, 32, 64]),
    ],
)
def test_the_sizes_shown(base, phi, largest, sizes):
    assert trade_off_at(phi, phi, phi, base_batch_size=base, largest=largest).to_dict()["batch_size"] == sizes


def test_it_is_printed_as_a_table_that_says_what_it_means():
    found = trade_off_at(
        448.0, 192.0, 960.0, base_batch_size=64, largest=512, step_time=StepTime(0.064, 0.001), suggested=128
    )
    assert repr(found).splitlines() == [
        "To the same progress, relative to a batch of 64; noise scale 448 (192 to 960):",
        "",
        "batch size             steps           samples              time",
        "        16  3.62 (3.25-3.81)  0.91 (0.81-0.95)  2.27 (2.03-2.38)",
        "        32  1.88 (1.75-1.94)  0.94 (0.88-0.97)  1.41 (1.31-1.45)",
        "        64                 1                 1                 1",
        "       128  0.56 (0.53-0.62)  1.12 (1.06-1.25)  0.84 (0.80-0.94)",
        "       256  0.34 (0.30-0.44)  1.38 (1.19-1.75)  0.86 (0.74-1.09)",
        "       512  0.23 (0.18-0.34)  1.88 (1.44-2.75)  1.05 (0.81-1.55)",
        "",
        "To use: 128. Instead of 64 it would take 0.56 times the steps, 1.12 times the samples, 0.84 times the time.",
    ]


@pytest.mark.parametrize(
    ("suggested", "said"),
    [(64, "To use: 64, the batch that the others are compared with."), (96, "To use: 96."), (None, "1.00-1.50")],
)
def test_the_last_line_is_the_size_to_use_whichever_it_is(suggested, said):
    found = trade_off_at(None, 64.0, math.inf, base_batch_size=64, largest=128, suggested=suggested)
    assert repr(found).endswith(said)


def test_where_the_noise_scale_is_not_resolved_limits_are_all_there_is():
    found = trade_off_at(None, 64.0, math.inf, base_batch_size=64, largest=128)
    assert repr(found).splitlines() == [
        "To the same progress, relative to a batch of 64; noise scale 64 or more:",
        "",
        "batch size      steps    samples",
        "        16  2.50-4.00  0.62-1.00",
        "        32  1.50-2.00  0.75-1.00",
        "        64          1          1",
        "       128  0.50-0.75  1.00-1.50",
    ]
    assert found.to_dict()["steps"] == [None] * 4
    assert found.to_dict()["steps_high"] == [4, 2, 1, 0.75]


def test_columns_are_of_equal_length_and_unknown_time_is_none():
    columns = trade_off_at(300.0, 100.0, 500.0, base_batch_size=64, largest=512).to_dict()
    assert len({len(column) for column in columns.values()}) == 1
    assert columns["time"] == columns["time_low"] == [None] * len(columns["steps"])


@pytest.mark.parametrize("base", [0, 1.5, "64"])
def test_a_base_that_is_no_batch_size_is_named(base):
    with pytest.raises((ValueError, TypeError), match="base="):
        trade_off_at(300.0, 100.0, 500.0, base_batch_size=base, largest=512)


def test_the_mean_over_a_run_is_over_its_progress_not_its_samples():
    # 200 samples at batch 100 and phi 100 make 1 noise-free step; 400 at phi 300 make 1 too.
    assert mean_over_run([200, 400], [100, 100], [100, 300]) == pytest.approx(200)


def test_the_mean_predicts_the_steps_of_a_run_whose_noise_scale_changes():
    # Noise-free steps 3 and 7 at phi 50 and 400: the fixed batch B takes 3 (1 + 50/B) + 7 (1 + 400/B).
    ran = 64
    samples = [3 * (ran + 50), 7 * (ran + 400)]
    phi = mean_over_run(samples, [ran, ran], [50, 400])
    steps = {B: 3 * (1 + 50 / B) + 7 * (1 + 400 / B) for B in (64, 256)}
    assert steps_ratio(phi, 256, 64) == pytest.approx(steps[256] / steps[64])


def test_and_of_one_whose_batch_changes_with_it():
    assert mean_over_run([3 * (64 + 50), 7 * (256 + 400)], [64, 256], [50, 400]) == pytest.approx(0.3 * 50 + 0.7 * 400)


def test_an_upper_limit_may_be_unknown_for_part_of_a_run():
    assert mean_over_run([100, 100], [50, 50], [50, math.inf]) == pytest.approx((0.5 * 100 + 100) / 1)
    assert mean_over_run([100], [50], [math.inf]) == math.inf


def columns(*rows) -> dict:
    """Decisions (samples, batch size, noise scale, low, high), the start before them."""
    names = ("samples", "global_batch_size", "noise_scale", "low", "high")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


START = (0, 64, None, None, None)


def test_an_estimate_weighs_the_stretch_before_its_decision():
    # 3 and 7 noise-free steps as above, the first at 64, the second at the 256 that the first decision chose
    ends = (3 * (64 + 50), 3 * (64 + 50) + 7 * (256 + 400))
    run = columns(START, (ends[0], 256, 50.0, 25.0, 50.0), (ends[1], 512, 400.0, 200.0, math.inf))
    found = trade_off_of_run(run, StepTime(1, 0), largest=4096)
    assert found.base_batch_size == 64
    assert found.phi == pytest.approx(0.3 * 50 + 0.7 * 400)
    assert found.low < found.phi < found.high < math.inf
    assert found.rows[-1].time == found.rows[-1].steps


def test_stretches_without_a_point_estimate_are_left_out():
    few, lost = (100, 64, None, None, None), (300, 64, None, 80.0, math.inf)
    run = columns(START, few, (200, 64, 100.0, 50.0, 150.0), lost)
    found = trade_off_of_run(run, None, base=32, largest=4096)
    assert (found.phi, found.low, found.high) == pytest.approx((100, 50, 150))
    assert found.base_batch_size == 32


def test_of_a_run_that_never_resolved_it_the_limits_are_known():
    run = columns(START, (100, 64, None, 80.0, math.inf))
    found = trade_off_of_run(run, None, largest=4096)
    assert (found.phi, found.low, found.high) == (None, pytest.approx(80), math.inf)


@pytest.mark.parametrize("run", [columns(START), columns(START, (100, 64, None, None, None))])
def test_a_run_that_has_not_measured_says_so(run):
    with pytest.raises(RuntimeError, match="no noise scale has been measured yet"):
        trade_off_of_run(run, None, largest=4096)
