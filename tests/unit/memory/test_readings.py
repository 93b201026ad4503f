"""Whether a peak statistic was reset, by readings of it."""

import pytest

from adaptbs.memory.readings import PeakReadings
from adaptbs.memory.search import Trial


@pytest.mark.parametrize(
    ("at_start", "readings", "reset"),
    [
        (100, [(8, 180, 100), (16, 260, 100)], False),
        (100, [(8, 180, 100), (8, 180, 100)], False),  # the same size, read twice
        (900, [(8, 900, 100), (16, 900, 100), (32, 900, 100)], False),  # an earlier run's peak, which says too much
        (900, [(8, 900, 100), (16, 1000, 100)], False),
        (100, [(8, 180, 100), (16, 260, 100), (32, 260, 100)], True),  # no higher for twice the batch
        (100, [(8, 100, 100)], True),  # a step took nothing
        (900, [(8, 180, 100)], True),  # it fell
        (100, [(8, 180, 100), (16, 170, 100)], True),
        (100, [(8, 105, 102), (16, 105, 102)], True),  # what was left after a reset
    ],
)
def test_resets_are_seen(at_start, readings, reset):
    seen = PeakReadings(at_start)
    for size, peak, rest in readings:
        seen.add(Trial(size, peak, 1000, rest))
    assert seen.were_reset is reset
