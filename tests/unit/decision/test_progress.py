import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptbs.decision.progress import Progress, sample_efficiency
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
        *_, complete = progress.count(10, 10, 0, 10, 0.1)
        assert complete == progress.complete
    assert progress.samples == progress.limit == 300
    assert progress.share == 1


def test_what_is_required_rises_where_samples_are_worth_less():
    progress = run()
    assert progress.required == pytest.approx(200 / 300)
    progress.count(30, 30, 0, 30, 0.9)
    assert progress.required == pytest.approx((200 - 27) / 270)


def test_the_epochs_that_a_run_may_take_end_with_a_short_one():
    assert run().most_epochs == 3
    assert run(max_extra=None).most_epochs == 2


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
