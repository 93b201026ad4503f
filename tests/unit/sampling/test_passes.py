"""A pass that an epoch ends within: the next iteration begins with what was cut and has not been begun."""

from itertools import chain, islice

import pytest

from adaptbs.sampling import AdaptiveBatchSampler, BatchInfo, EpochPasses
from adaptbs.sampling.order import number_pass
from adaptbs.sampling.stream import StreamSampler


def sampler(n: int = 20, size: int = 4, per_step: int = 1) -> AdaptiveBatchSampler:
    return AdaptiveBatchSampler(range(n), lambda: size * per_step, size, False, per_step)


def iterate(cuts: AdaptiveBatchSampler, cut):
    with cuts.over(cut):
        return iter(cuts)


def test_what_was_fetched_ahead_is_fetched_again_and_nothing_twice():
    cuts = sampler()
    cut = cuts.new_pass()
    fetched = list(islice(iterate(cuts, cut), 4))  # as by workers
    begun = [cut.issued.popleft() for _ in range(2)]
    assert (cut.begun, cut.left) == (2, (3, 12))
    again = list(iterate(cuts, cut))
    assert again == [*fetched[2:], [16, 17, 18, 19]]
    assert [*chain(*(info.indices for info in begun)), *chain(*again)] == list(range(20))


def test_an_iteration_that_was_itself_left_early_loses_nothing():
    cuts = sampler()
    cut = cuts.new_pass()
    list(islice(iterate(cuts, cut), 4))
    cut.issued.popleft()
    assert list(islice(iterate(cuts, cut), 1)) == [[4, 5, 6, 7]]
    cut.issued.popleft()
    assert list(chain(*iterate(cuts, cut))) == list(range(8, 20))


def test_a_pass_after_another_shares_its_queue_and_goes_on_with_its_step():
    cuts = sampler(n=20, size=4, per_step=2)  # five batches: two steps and a half
    first = cuts.new_pass()
    list(iterate(cuts, first))
    assert [info.ends_step for info in first.issued] == [False, True, False, True, False]
    first.issued.clear()
    second = cuts.new_pass(after=first)
    list(iterate(cuts, second))
    assert second.queue is first.queue
    assert [info.ends_step for info in second.issued] == [True, False, True, False, True]


def test_an_iteration_outside_of_over_is_a_pass_of_its_own():
    cuts = sampler()
    cut = cuts.new_pass()
    next(iterate(cuts, cut))
    assert list(chain(*cuts)) == list(range(20))
    assert cut.count == 1


def test_the_batches_of_an_epoch_are_counted_over_its_passes():
    cuts = sampler(n=8)
    first = cuts.new_pass()
    list(iterate(cuts, first))
    first.issued.popleft()
    passes = EpochPasses(first, iter(()))
    assert (passes.begun, passes.length) == (0, 1), "the first batch was of the epoch before"
    first.issued.popleft()
    second = cuts.new_pass(after=passes.end_pass())
    list(islice(iterate(cuts, second), 2))  # workers fetch ahead
    passes.go_on_with(second, iter(()))
    assert passes.begun == 1
    passes.queue.popleft()
    assert (passes.begun, passes.length) == (2, 3)


def test_a_pass_at_its_end_comes_to_it():
    cuts = sampler(n=8)
    cut = cuts.new_pass()
    fetched = iterate(cuts, cut)
    passes = EpochPasses(cut, fetched)
    next(fetched)
    assert passes.left_over()
    next(fetched)
    assert passes.left_over(), "two batches have not been begun"
    cut.issued.clear()
    assert not passes.left_over()
    assert next(fetched, None) is None


def test_a_stream_longer_than_it_says_keeps_the_batch_that_was_fetched_to_see():
    cuts = StreamSampler(range(4), lambda: 4, 4, False)
    cut = cuts.new_pass()
    requests = iterate(cuts, cut)
    stream = ([i] * len(next(requests)) for i in range(3))
    passes = EpochPasses(cut, stream)
    assert passes.is_new(next(passes.fetched))
    cut.queue.popleft()
    assert passes.left_over()
    following = passes.for_the_next_epoch()
    batch = next(following.fetched)
    assert batch == [1] * 4 and following.is_new(batch)
    assert list(cut.queue) == [BatchInfo(4, 4)], "it answers one request"


@pytest.mark.parametrize("number", [0, 3])
def test_a_pass_is_numbered_where_that_is_asked_for(number):
    told = []

    class Sampler:
        def set_epoch(self, number: int) -> None:
            told.append(number)

    number_pass(number, None, Sampler(), [1, 2], object())
    assert told == [number]
