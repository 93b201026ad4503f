from itertools import chain

import pytest

from adaptbs.sampling.batch_sampler import AdaptiveBatchSampler
from adaptbs.sampling.order import next_length


def sampler(n: int, sizes: list[int], *, start: int, drop_last: bool = False) -> AdaptiveBatchSampler:
    """Over n indices; each time the size is asked for it is the next of these, and the last one stays.

    (`list` would ask for the length too, and use one up.)
    """
    return AdaptiveBatchSampler(range(n), lambda: sizes.pop(0) if len(sizes) > 1 else sizes[0], start, drop_last)


def lengths(cut: AdaptiveBatchSampler) -> list[int]:
    return [len(batch) for batch in cut]


def test_an_unchanged_size_cuts_as_the_stock_sampler_does():
    assert lengths(sampler(10, [4], start=4)) == [4, 4, 2]
    assert lengths(sampler(10, [4], start=4, drop_last=True)) == [4, 4]


def test_the_size_may_change_at_any_batch():
    cut = sampler(9, [2, 3, 4], start=2)
    assert [*iter(cut)] == [[0, 1], [2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("sizes", [[2, 3, 5, 8], [5, 1, 4], [20], [3, 7]])
def test_every_index_is_issued_once(sizes):
    assert sorted(chain.from_iterable(sampler(23, sizes, start=3))) == list(range(23))


def test_drop_last_delivers_as_many_samples_as_stock_whatever_the_size():
    cut = sampler(23, [4, 16], start=4, drop_last=True)
    assert cut.pass_samples == 20
    assert sum(lengths(cut)) == 20


def test_growth_makes_no_shorter_tail_than_stock():
    # 21 samples in fours leave a tail of 1, in eights 5; 20 samples in fours leave none, so a tail of 2 is too short
    assert lengths(sampler(21, [8], start=4)) == [8, 8, 5]
    assert lengths(sampler(20, [6], start=4)) == [6, 6, 4, 4]


@pytest.mark.parametrize(
    ("size", "left", "tail", "length"),
    [
        (8, 20, 4, 8),
        (8, 8, 4, 8),
        (8, 5, 4, 5),
        (8, 9, 4, 5),  # leaves the 4
        (8, 9, 5, 5),  # no cut leaves both parts 5 long: halved
        (2, 3, 8, 2),  # a size below the tail cannot do better than its own size; rounded up
    ],
)
def test_the_next_length(size, left, tail, length):
    assert next_length(size, left, tail) == length


def test_what_was_issued_says_nominal_size_and_true_length():
    cut = sampler(10, [4], start=4)
    list(cut)
    assert [issued.cut for issued in cut.issued] == [[4, 4, True], [4, 4, True], [4, 2, True]]
    assert [issued.indices for issued in cut.issued] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_each_iteration_has_its_own_queue():
    cut = sampler(10, [4], start=4)
    first = iter(cut)
    next(first)
    old = cut.issued
    iter(cut)
    next(first)
    assert len(old) == 2
    assert len(cut.issued) == 0


def test_the_length_is_that_of_an_epoch_at_the_size_of_now():
    assert len(sampler(10, [4], start=4)) == 3
    assert len(sampler(10, [5], start=4)) == 2
    assert len(sampler(10, [4], start=4, drop_last=True)) == 2


def test_an_index_source_that_ends_early_ends_the_epoch():
    class Short:
        def __len__(self) -> int:
            return 10

        def __iter__(self):
            return iter(range(8))

    assert lengths(AdaptiveBatchSampler(Short(), lambda: 4, 4, False)) == [4, 4]


def test_batches_can_be_cut_in_rows_with_the_last_on_their_own():
    size = iter([4, 12, 8, 100, 100])
    cut = AdaptiveBatchSampler(range(40), lambda: next(size), 4, drop_last=False, row_multiple=4, tail_rows=4)
    batches = list(iter(cut))  # (a list asks for the length, which asks for the size)
    assert [len(batch) for batch in batches] == [4, 12, 8, 12, 4]
    assert [i for batch in batches for i in batch] == list(range(40))
