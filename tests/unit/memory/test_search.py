"""The largest batch that fits, on thousands of simulated devices."""

import pytest

from adaptbs.memory.search import Trial, affordable, largest_fitting, next_size, search
from tests.simulated_device import SimulatedDevice, random_device

MOST = 1 << 20


@pytest.mark.parametrize("block", range(4))
def test_on_affine_devices_five_trials_find_it_within_two_per_cent(block):
    for seed in range(250 * block, 250 * (block + 1)):
        device, start = random_device(seed)
        trials, truth = search(device.trial, start, MOST), device.largest(MOST)
        answer = largest_fitting(trials)
        assert answer is not None and device.fits(answer), seed
        assert answer >= min(truth - 1, 0.98 * truth), (seed, answer, truth)
        assert len(trials) <= 5, seed
        assert sum(trial.peak is None for trial in trials) <= 1, seed


def test_where_memory_jumps_nearly_all_are_found_by_eight_trials():
    missed = 0
    for seed in range(1000):
        device, start = random_device(seed, jumps=True)
        trials, truth = search(device.trial, start, MOST), device.largest(MOST)
        assert len(trials) <= 8, seed
        near = (largest_fitting(trials) or 0) >= min(truth - 1, 0.98 * truth)
        missed += not near or sum(trial.peak is None for trial in trials) > 2
    assert missed <= 30


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("jumps", [False, True])
def test_what_is_returned_has_been_run_and_fits(jumps, taken):
    for seed in range(1000, 1500):
        device, start = random_device(seed, jumps=jumps, taken=taken)
        trials = search(device.trial, start, MOST)
        answer = largest_fitting(trials)
        assert answer is None or (answer in {trial.batch_size for trial in trials} and device.fits(answer)), seed
        assert len(trials) <= 8


@pytest.mark.parametrize("truth", [1_200, 3_900, 30_900])
def test_a_first_size_that_took_next_to_nothing_misleads_it_for_long_no_more(truth):
    """Where gradients are most of what a small batch takes, the batch seems to add nothing."""
    weights = 1_000_000
    limit = 2 * weights + 1000 * (truth - 900)

    def run(size: int) -> Trial:
        peak = weights + max(weights, weights // 10 + 1000 * size)  # at the end of the backward pass, or as it begins
        return Trial(size, peak if peak <= limit else None, limit, 2 * weights)

    answer = largest_fitting(search(run, 16, MOST))
    assert answer is not None and 0.9 * truth <= answer <= truth, "by eight trials, the second of them far too large"


def test_where_nothing_fits_none_is_returned():
    device = SimulatedDevice(capacity=1000, rest=900, temporary=90, per_sample=512, tensors=1)
    trials = search(device.trial, 64, MOST)
    assert largest_fitting(trials) is None
    assert [trial.batch_size for trial in trials] == [64, 1]


def test_what_a_model_cannot_take_is_not_tried():
    device = SimulatedDevice(capacity=10_000, rest=0, temporary=0, per_sample=512, tensors=1)
    assert [t.batch_size for t in search(device.trial, 64, MOST, least=2)][:2] == [64, 2]


def test_no_more_is_tried_than_is_of_use():
    device = SimulatedDevice(capacity=1 << 30, rest=0, temporary=0, per_sample=512, tensors=1)
    trials = search(device.trial, 64, 100)
    assert largest_fitting(trials) == 100
    assert [trial.batch_size for trial in trials] == [64, 100]
    assert largest_fitting(search(device.trial, 64, 32)) == 32


def test_what_is_known_is_not_run_again():
    device = SimulatedDevice(capacity=1 << 30, rest=0, temporary=0, per_sample=1 << 20, tensors=1)
    known = Trial(64, device.peak(64), device.limit())
    trials = search(device.trial, 500, MOST, known=[known])
    assert 64 not in {trial.batch_size for trial in trials[1:]}
    assert largest_fitting(trials) >= 0.98 * device.largest()


def test_the_careful_never_run_out():
    for seed in range(200):
        device, _ = random_device(seed)
        device.fragmentation = 0.0
        trials = search(device.trial, 1, MOST, careful=True)
        assert all(trial.peak is not None for trial in trials), seed


def test_what_another_process_takes_meanwhile_counts():
    trials = [Trial(64, 700, 900), Trial(32, 400, 600)]
    assert largest_fitting(trials) == 32, "64 was within the limit when it ran, and is not any more"
    assert 32 < next_size(trials, 64, MOST) < 64


def test_affordable_is_what_surely_fits():
    assert affordable(Trial(100, peak=600, limit=900, rest=500)) == pytest.approx(400)
    assert affordable(Trial(100, peak=600, limit=900)) == pytest.approx(150)
    assert affordable(Trial(100, peak=600, limit=600)) == 100
