"""The length of an epoch is what it comes to when the size stays."""

import pytest

from adaptbs.ranks import ALONE
from adaptbs.sampling import AdaptiveBatchSampler


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("per_step", [1, 3])
@pytest.mark.parametrize("n", [7, 64, 100, 1000, 1003])
@pytest.mark.parametrize("size", [2, 4, 12, 20, 300])
def test_it_is_what_comes_of_it(n, size, per_step, drop_last):
    if n < 4 * per_step:
        return
    step = size * per_step
    current = [4 * per_step]
    sampler = AdaptiveBatchSampler(range(n), lambda: current[0], 4, drop_last, per_step, ALONE)
    cut, delivered = sampler.new_pass(), 0
    with sampler.over(cut):
        batches = iter(sampler)
    for _ in range(3 * per_step):
        if next(batches, None) is not None:
            delivered += 1
    current[0] = step
    said = cut.length
    assert said >= delivered
    assert said == delivered + sum(1 for _ in batches)
    assert cut.length == said


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize("n", [23, 64, 257])
@pytest.mark.parametrize("size", [3, 7, 14, 28, 56, 300])
def test_a_pass_that_has_not_begun_has_the_batches_that_come_of_it(n, size, per_step, drop_last, halves):
    sampler = AdaptiveBatchSampler(range(n), lambda: size * per_step, 7, drop_last, per_step, ALONE)
    sampler.follow(sampler.size, lambda: halves)
    assert len(sampler) == sum(1 for _ in sampler)
