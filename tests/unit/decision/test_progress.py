import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptbs.decision.progress import Progress, sample_efficiency, share_end
from adaptbs.types import NoiseScale


def known(phi: float, grad_sq: float = 1.0, measurements: int = 9) -> NoiseScale:
    return NoiseScale(grad_sq, phi * grad_sq, low=phi, high=phi, cautious=phi, measurements=measurements)


def run(epochs: int = 2, max_extra: float | None = 0.5, epoch_samples: int = 100) -> Progress:
    progress = Progress(epoch_samples, epochs)
    if max_extra is not None:
        progress.end_by_progress(max_extra)
    return progress


def test_a_sample_is_worth_its_efficiency():
    assert sample_efficiency(64, 64, known(100), critical=4) == 1
    assert sample_efficiency(400, 100, known(50), critical=4) == 300 / 600  # at a critical batch of 200
    assert sample_efficiency(50, 100, known(100), critical=2) == 300 / 250


def test_where_the_gradient_is_lost_in_noise_every_sample_counts():
    assert sample_efficiency(512, 64, known(100, grad_sq=-1.0), critical=4) == 1


@pytest.mark.parametrize("unknown", [None, known(1e6, measurements=3)])
def test_where_nothing_is_known_a_batch_counts_as_one_of_the_reference(unknown):
    assert sample_efficiency(256, 64, unknown, critical=4) == 1 / 4
    assert sample_efficiency(32, 64, unknown, critical=4) == 1


def test_a_plain_budget_counts_samples_and_leaves_the_end_to_the_user():
    progress = run(max_extra=None)
    assert progress.count(50, 50, 0, 50, 0.5) == (0, 50, False)
    assert progress.count(50, 50, 0, 100, 0.5) == (50, 100, False)
    assert progress.share == 0.5
    for _ in range(3):
        progress.count(100, 100, 0, 100, 0.5)
    assert progress.share == 1
    assert not progress.complete


def test_a_budget_of_progress_counts_what_samples_are_worth():
    progress = run()
    assert progress.count(50, 50, 0, 50, 0.8) == (0, 40, False)
    assert progress.count(50, 50, 0, 100, 0.9) == (40, 85, False)
    assert progress.share == 85 / 200
    assert progress.samples == 100


def test_at_the_reference_the_run_is_exactly_as_long_as_planned():
    progress, batches = run(epoch_samples=96), 0
    while not progress.complete:
        progress.count(8, 8, 0, 8, 1.0)
        batches += 1
    assert (batches, progress.effective_samples) == (24, 192)


def test_it_ends_within_its_limit_and_with_its_schedule():
    progress = run()
    while not progress.complete:
        progress.count(10, 10, 0, 10, 0.1)
    assert progress.samples == progress.limit == 300
    assert progress.share == 1


def test_what_is_required_rises_where_samples_are_worth_less():
    progress = run()
    assert progress.required == pytest.approx(200 / 300)
    progress.count(30, 30, 0, 30, 0.9)
    assert progress.required == pytest.approx((200 - 27) / 270)


@pytest.mark.parametrize(
    ("epoch", "done", "end"),
    [
        (0, 0.0, 100),
        (0, 60.0, 100),  # what a look at the data before the run has brought counts for the first epoch
        (1, 112.0, 200),  # what a batch brought beyond the first share counts for the second
        (2, 150.0, 300),  # an epoch was broken off: the next makes up for it
        (0, 100.0, 200),  # the loop's body goes over the data again: that takes the share that follows
        (1, 99.99999999999, 200),  # sums of floats
    ],
)
def test_an_epoch_ends_with_its_share_of_the_run(epoch, done, end):
    assert share_end(epoch, done, 100) == end


def test_an_epoch_is_complete_with_the_batch_that_crosses_its_share():
    progress = run()
    progress.begin_epoch()
    assert progress.count(60, 60, 0, 60, 0.9) == (0, 54, False)
    assert not progress.epoch_complete and progress.samples_left(0.8) == pytest.approx(46 / 0.8)
    assert progress.count(60, 60, 0, 120, 0.9) == (54, 108, True)
    assert progress.epoch_complete and not progress.complete and progress.samples_left(0.8) == 0
    progress.set_epoch(1)
    progress.begin_epoch()
    assert progress.epoch_end == 200 and not progress.epoch_complete


def test_under_a_budget_of_epochs_no_share_ends_an_epoch():
    progress = run(max_extra=None)
    assert progress.count(150, 150, 0, 150, 1.0) == (0, 150, False)
    assert not progress.by_shares and not progress.epoch_complete


def test_samples_left_are_no_more_than_the_limit_lets_the_run_take():
    progress = run(max_extra=0.5)
    assert progress.samples_left(0.1) == pytest.approx(100 / (200 / 300))


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0.01, 1)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.floats(0, 2),
)
def test_whatever_is_delivered_n_epochs_are_n_epochs_with_a_batch_each(batches, epochs, max_extra):
    progress, each = run(epochs, max_extra), itertools.cycle(batches)
    for epoch in range(epochs):
        assert not progress.complete
        progress.set_epoch(epoch)
        progress.begin_epoch()
        ended = False
        while not ended:
            size, efficiency = next(each)
            *_, ended = progress.count(size, size, epoch, size, efficiency)
            assert ended == progress.epoch_complete
    assert progress.complete


@given(st.integers(1, 64), st.integers(1, 300), st.integers(1, 5))
def test_at_the_reference_an_epoch_is_a_pass(size, samples, epochs):
    progress = run(epochs, 1.0, samples)
    for epoch in range(epochs):
        progress.set_epoch(epoch)
        progress.begin_epoch()
        left = samples
        while left:
            batch = min(size, left)
            left -= batch
            assert progress.count(size, batch, epoch, samples - left, 1.0)[2] == (not left)


def test_the_epoch_is_the_one_that_the_latest_batch_belongs_to():
    progress = run(max_extra=None)
    assert progress.count(10, 10, 1, 30, 1.0) == (20, 30, False)
    assert progress.epoch == 1


def test_of_an_unknown_length_the_share_is_of_an_epoch():
    progress = Progress(100, None)
    for _ in range(3):
        progress.count(50, 50, 0, 50, 1.0)
    assert progress.share == 1.5
    assert not progress.complete


def test_it_goes_on_from_its_state():
    first, second = run(), run()
    first.count(50, 50, 0, 50, 0.5)
    second.load_state_dict(first.state_dict())
    assert second.count(20, 20, 0, 70, 0.5) == first.count(20, 20, 0, 70, 0.5)
    assert second.state_dict() == first.state_dict()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 2)), min_size=1, max_size=20),
    st.integers(1, 3),
    st.floats(0, 2),
)
def test_whatever_is_delivered_the_end_comes_at_the_plan_and_within_the_limit(batches, epochs, max_extra):
    progress, before = run(epochs, max_extra), -1.0
    i = 0
    while not progress.complete:
        size, each = batches[i % len(batches)]
        assert before < progress.effective_samples <= progress.planned
        before = progress.effective_samples
        progress.count(size, size, 0, size, each)
        i += 1
    assert progress.effective_samples == pytest.approx(progress.planned)
    assert progress.samples <= progress.limit + 40  # sizes that change may leave no whole batch to end with
