import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptbs.decision.progress import Progress, rate
from adaptbs.types import NoiseScale


def known(phi: float, grad_sq: float = 1.0, measurements: int = 9) -> NoiseScale:
    return NoiseScale(grad_sq, phi * grad_sq, low=phi, high=phi, cautious=phi, measurements=measurements)


def run(epochs: int = 2, max_extra: float | None = 0.5, epoch_samples: int = 100) -> Progress:
    progress = Progress(epoch_samples, epochs)
    progress.max_extra = max_extra
    return progress


def test_a_sample_is_worth_its_efficiency():
    assert rate(64, 64, known(100), critical=4) == 1
    assert rate(400, 100, known(50), critical=4) == 300 / 600  # at a critical batch of 200
    assert rate(50, 100, known(100), critical=2) == 300 / 250


def test_where_the_gradient_is_lost_in_noise_every_sample_counts():
    assert rate(512, 64, known(100, grad_sq=-1.0), critical=4) == 1


@pytest.mark.parametrize("unknown", [None, known(1e6, measurements=3)])
def test_where_nothing_is_known_a_batch_counts_as_one_of_the_reference(unknown):
    assert rate(256, 64, unknown, critical=4) == 1 / 4
    assert rate(32, 64, unknown, critical=4) == 1


def test_a_plain_budget_counts_samples_and_leaves_the_end_to_the_user():
    progress = run(max_extra=None)
    assert progress.deliver(50, 50, 50, rate=0.5) == (0, 50)
    assert progress.deliver(50, 50, 100, rate=0.5) == (50, 100)
    assert progress.share == 0.5
    progress.end_epoch()
    for _ in range(3):
        progress.deliver(100, 100, 100, rate=0.5)
        progress.end_epoch()
    assert progress.share == 1
    assert not progress.complete


def test_a_budget_of_progress_counts_what_samples_are_worth():
    progress = run()
    assert progress.deliver(50, 50, 50, rate=0.8) == (0, 40)
    assert progress.deliver(50, 50, 100, rate=0.9) == (40, 85)
    assert progress.share == 85 / 200
    assert progress.samples == 100


def test_at_the_reference_the_run_is_exactly_as_long_as_planned():
    progress, batches = run(epoch_samples=96), 0
    while not progress.complete:
        progress.deliver(8, 8, 8, rate=1.0)
        batches += 1
    assert (batches, progress.worth) == (24, 192)


def test_it_ends_within_its_limit_and_with_its_schedule():
    progress = run()
    while not progress.complete:
        progress.deliver(10, 10, 10, rate=0.1)
    assert progress.samples == progress.limit == 300
    assert progress.share == 1


def test_what_is_required_rises_where_samples_are_worth_less():
    progress = run()
    assert progress.required == pytest.approx(200 / 300)
    progress.deliver(30, 30, 30, rate=0.9)
    assert progress.required == pytest.approx((200 - 27) / 270)


def test_an_epoch_broken_off_counts_as_one_and_an_empty_one_does_not():
    progress = run()
    progress.deliver(10, 10, 10, rate=1.0)
    progress.end_epoch()
    progress.end_epoch()
    assert (progress.epoch, progress.epoch_position) == (1, 0)
    assert progress.most_epochs == 3


def test_of_an_unknown_length_the_share_is_of_an_epoch():
    progress = Progress(100, None)
    for _ in range(3):
        progress.deliver(50, 50, 50, rate=1.0)
    assert progress.share == 1.5
    assert not progress.complete


def test_it_goes_on_from_its_state():
    first, second = run(), run()
    first.deliver(50, 50, 50, rate=0.5)
    second.load_state_dict(first.state_dict())
    assert second.deliver(20, 20, 70, rate=0.5) == first.deliver(20, 20, 70, rate=0.5)
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
        assert before < progress.worth <= progress.planned
        before = progress.worth
        progress.deliver(size, size, size, each)
        i += 1
    assert progress.worth == pytest.approx(progress.planned)
    assert progress.samples <= progress.limit + 40  # sizes that change may leave no whole batch to end with
