from adaptbs.loader.explicit_epochs import ExplicitEpochs


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
