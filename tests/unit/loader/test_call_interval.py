import pytest

from adaptbs.loader.call_interval import CallInterval


def seen(*batches: int) -> CallInterval:
    """The interval after calls with so many batches between them."""
    interval = CallInterval()
    for n in batches:
        if not interval.known:
            interval.look(n)
    return interval


@pytest.mark.parametrize(
    ("batches", "known", "gap"),
    [
        ((1,), False, 1),
        ((1, 1), True, 1),
        ((4, 4), True, 4),
        ((2, 1, 1), True, 1),  # a first call was left out, as a GradScaler does
        ((4, 4, 2, 4), True, 4),  # and an epoch's last batches brought one early
        ((1, 0, 1), False, 0.5),
        ((1, 0, 1, 0, 1), True, 0.5),  # twice a batch
        ((4, 0, 0, 4, 0, 0, 4), True, 4 / 3),
    ],
)
def test_two_calls_after_equally_many_batches_show_it(batches, known, gap):
    interval = seen(*batches)
    assert (interval.known, interval.gap) == (known, pytest.approx(gap))


def test_until_then_a_call_stands_for_the_fixed_runs_batches_of_each_batch():
    interval = CallInterval()
    assert [interval.ratio(6, 3), interval.ratio(4, 1), interval.ratio(0, 0)] == [2, 4, 4]
