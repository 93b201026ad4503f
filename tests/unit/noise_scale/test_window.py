import logging
import math

import numpy as np
import pytest
import torch

from adaptbs.noise_scale import estimate
from adaptbs.noise_scale.window import FORGET, FULL, MEMORY, MOST, MeasurementWindow
from adaptbs.types import SquaredNorms


def norms(trace: float, grad_sq: float) -> SquaredNorms:
    """The measurement, on one sample and on two, that has exactly this trace and grad_sq."""
    return SquaredNorms(1, grad_sq + trace, 2, grad_sq + trace / 2)


def test_a_window_knows_nothing_before_the_first_measurement():
    assert MeasurementWindow(1000).estimate(0.9) is None


def test_a_measurement_fades_to_1_over_e_within_a_twentieth_of_the_run():
    window = MeasurementWindow(1000)
    window.add(0, norms(10, 1))
    window.add(50, norms(10, 3))
    assert window.estimate(0.9).grad_sq == pytest.approx((1 / math.e + 3) / (1 / math.e + 1))


def test_a_larger_batch_weighs_by_its_size():
    window = MeasurementWindow(1000)
    window.add(0, SquaredNorms(1, 1.0, 2, 1.0))  # |G|^2 = 1 on 2 samples
    window.add(0, SquaredNorms(3, 5.0, 6, 5.0))  # |G|^2 = 5 on 6
    assert window.estimate(0.9).grad_sq == pytest.approx((2 * 1 + 6 * 5) / 8)


def test_a_few_measurements_far_apart_reach_further_back():
    window = MeasurementWindow(1000)
    window.add(0, norms(10, 1))
    window.add(500, norms(10, 3))  # half a run later: faded to 1/e^2 then, whatever the share
    assert window.estimate(0.9).grad_sq == pytest.approx((1 / math.e**2 + 3) / (1 / math.e**2 + 1))


EDGE = round(FORGET * MEMORY * 1000)


@pytest.mark.parametrize(("latest", "kept"), [(EDGE, FULL + 4), (EDGE + 1, FULL)])
def test_old_measurements_are_dropped_but_never_the_latest_few(latest, kept):
    window = MeasurementWindow(1000)
    for samples in [0] * (FULL + 3) + [latest]:
        window.add(samples, norms(10, 1))
    assert window.estimate(0.9).measurements == kept


def test_an_estimate_is_as_of_the_latest_measurement_whoever_has_read_it():
    window = MeasurementWindow(1000)
    window.add(0, norms(10, 1))
    first = window.estimate(0.9)
    assert window.estimate(0.9) is first
    window.add(1, norms(10, 3))
    window.read()
    assert window.estimate(0.9).measurements == 2
    assert window.estimate(0.5).low >= window.estimate(0.9).low


def test_reading_gives_each_measurement_once():
    window = MeasurementWindow(1000)
    window.add(7, SquaredNorms(1, torch.tensor(3.0), 2, torch.tensor(2.0)))
    assert window.read() == [(7, SquaredNorms(1, 3.0, 2, 2.0))]
    assert window.read() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_out_with_one_warning(bad, caplog):
    window = MeasurementWindow(1000)
    with caplog.at_level(logging.WARNING, "adaptbs"):
        for value in (bad, 12.0, bad):
            window.add(0, SquaredNorms(1, value, 2, 7.0))
            window.read()
    assert window.estimate(0.9).measurements == 1
    assert len(caplog.records) == 1
    assert "not finite" in caplog.text


def filled(*values: tuple[float, float]) -> MeasurementWindow:
    """A window with a measurement of each (trace, |G|^2), one sample apart, in a run long enough to forget none."""
    window = MeasurementWindow(10**6)
    for samples, (trace, grad_sq) in enumerate(values):
        window.add(samples, norms(trace, grad_sq))
    return window


STEADY = [(100 + i % 3, 1 + 0.1 * (i % 5)) for i in range(20)]


def test_too_many_gradients_that_are_not_finite_are_a_doubt():
    assert filled(*STEADY).estimate(0.9).doubt is None
    assert filled(*STEADY, *[(math.nan, 1)] * 6).estimate(0.9).doubt is None
    found = filled(*STEADY, *[(math.nan, 1)] * 7).estimate(0.9)
    assert (found.skipped, found.doubt) == (7, "non-finite steps")


DOUBLED = [(2 * trace, grad_sq) for trace, grad_sq in STEADY]


def test_gradients_that_are_never_finite_are_a_doubt_before_they_are_few():
    assert filled((100, 1), (math.nan, 1)).estimate(0.9).doubt == "non-finite steps"


def test_what_the_newer_measurements_contradict_is_forgotten():
    found = filled(*STEADY, *DOUBLED).estimate(0.9)
    assert (found.measurements, found.doubt) == (20, None)
    assert found.simple == pytest.approx(filled(*DOUBLED).estimate(0.9).simple, rel=1e-3)
    assert filled(*STEADY, *STEADY).estimate(0.9).measurements == 40


def test_a_contradiction_among_too_few_to_forget_any_is_a_doubt():
    assert filled(*STEADY[:6], *DOUBLED[:6]).estimate(0.9).doubt == "drifting"
    assert filled(*STEADY[:6], *STEADY[:6]).estimate(0.9).doubt is None


def test_drift_is_not_seen_in_noise():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        values = zip(rng.normal(100, 30, 40), rng.normal(1, 0.5, 40), strict=True)
        alarms += filled(*values).estimate(0.9).measurements < 40
    assert alarms < 0.05 * 400


def test_a_window_goes_on_from_its_state():
    window, copy = MeasurementWindow(1000), MeasurementWindow(1000)
    for samples, grad_sq in ((0, 1), (30, 3), (40, math.nan)):
        window.add(samples, norms(10, grad_sq))
    copy.load_state_dict(window.state_dict())
    assert copy.estimate(0.9) == window.estimate(0.9)


def test_a_long_window_holds_no_more_entries_and_its_estimate_is_that_of_all_measurements():
    rng = np.random.default_rng(0)
    count = 20 * MOST
    values = list(zip(rng.normal(100, 30, count), rng.normal(1, 3, count), strict=True))
    window = MeasurementWindow(20 * count)  # its memory is as long as all of them
    for samples, (trace, grad_sq) in enumerate(values):
        window.add(samples, norms(trace, grad_sq))
        if samples % 8 == 0:
            window.read()
    found = window.estimate(0.9)
    assert len(window._entries) <= MOST
    assert found.measurements == count
    weights = [math.exp((samples - count + 1) / count) for samples in range(count)]
    exact = estimate([norms(*value) for value in values], weights, 0.9)
    assert found.simple == pytest.approx(exact.simple, rel=0.02)
    assert found.low == pytest.approx(exact.low, rel=0.05)
    assert found.high == pytest.approx(exact.high, rel=0.05)


def test_merging_keeps_the_weights_of_batches_of_different_sizes():
    window = MeasurementWindow(10**9)
    sizes = [2, 6] * MOST
    for samples, size in enumerate(sizes):
        grad_sq = 1.0 if size == 2 else 5.0
        window.add(samples, SquaredNorms(size // 2, grad_sq, size, grad_sq))
    assert window.estimate(0.9).grad_sq == pytest.approx((2 * 1 + 6 * 5) / 8)


def test_a_state_saved_at_any_time_changes_no_later_estimate():
    rng = np.random.default_rng(0)
    values = list(zip(rng.normal(100, 30, 2 * MOST), rng.normal(1, 3, 2 * MOST), strict=True))
    plain, saved = MeasurementWindow(10**6), MeasurementWindow(10**6)
    for i, (trace, grad_sq) in enumerate(values):
        for window in (plain, saved):
            window.add(i, norms(trace, grad_sq))
            if i % 10 == 9:
                window.estimate(0.9)
        saved.state_dict()
    assert saved.estimate(0.9) == plain.estimate(0.9)


def test_finite_norms_whose_multiples_are_not_are_left_out():
    window = MeasurementWindow(1000)
    window.add(2, SquaredNorms(8, 1e308, 16, 1e308))
    for i in range(4):
        window.add(4 * i, norms(10, 2))
    found = window.estimate(0.9)
    assert (found.simple, found.measurements, found.skipped) == (pytest.approx(5), 4, 1)
