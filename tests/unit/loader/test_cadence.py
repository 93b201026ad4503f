import pytest

from adaptbs.loader.cadence import Cadence, ExplicitEpochs


def seen(*batches: int) -> Cadence:
    """A cadence after calls with so many batches between them."""
    cadence = Cadence()
    for n in batches:
        if not cadence.known:
            cadence.look(n)
    return cadence


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
    cadence = seen(*batches)
    assert (cadence.known, cadence.gap) == (known, pytest.approx(gap))


def test_until_then_a_call_stands_for_the_fixed_runs_batches_of_each_batch():
    cadence = Cadence()
    assert [cadence.ratio(6, 3), cadence.ratio(4, 1), cadence.ratio(0, 0)] == [2, 4, 4]


def told(*calls: tuple[float, int, int, int]) -> list[float]:
    """Places of a number said after so many batches: (number, iteration, of the fixed run, delivered)."""
    explicit, places, ahead, latest = ExplicitEpochs(), [], 0, 0
    for number, iteration, passed, batches in calls:
        ahead = passed - batches + (ahead if iteration == latest else 0)
        latest = iteration
        explicit.moved(passed, batches)
        places.append(explicit.place(number, iteration, ahead))
    return places


def test_a_number_that_counts_batches_is_moved_on_by_those_of_the_fixed_run():
    # 4 batches an epoch; after two of them the batch is twice as large
    assert told((0, 1, 1, 1), (0.25, 1, 1, 1), (0.5, 1, 2, 1)) == [0, 0.25, 0.75]
    assert told((0, 1, 1, 1), (0.25, 1, 1, 1), (0.5, 1, 2, 1), (1.0, 2, 2, 1), (1.25, 2, 2, 1))[-2:] == [1.25, 1.75]


def test_one_that_counts_through_the_run_stays_as_far_ahead():
    assert told((1, 1, 1, 1), (2, 1, 1, 1), (3, 1, 2, 1), (4, 2, 2, 1), (5, 2, 2, 1)) == [1, 2, 4, 6, 8]


def test_one_that_follows_the_samples_is_left_alone():
    assert told((0.25, 1, 1, 1), (0.5, 1, 1, 1), (1.0, 1, 2, 1)) == [0.25, 0.5, 1.0]


def test_one_that_is_said_once_an_epoch_is_left_alone():
    assert told((1, 1, 4, 4), (2, 2, 4, 2), (3, 3, 4, 1)) == [1, 2, 3]


def test_a_whole_number_stays_one():
    places = told((1, 1, 1, 1), (2, 1, 1, 1), (4, 1, 3, 2))
    assert places == [1, 2, 5]
    assert all(type(place) is int for place in places)
