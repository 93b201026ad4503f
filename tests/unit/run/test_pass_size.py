import math
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from adaptbs.run.pass_size import FollowPassSize, samples_at_once


@pytest.mark.parametrize(
    ("size", "largest", "at_once"), [(64, math.inf, 64), (64, 64, 64), (200, 128, 100), (64, 8, 8), (65, 64, 32.5)]
)
def test_a_batch_goes_through_in_equal_passes(size, largest, at_once):
    assert samples_at_once(size, largest) == at_once


def controller(base: int, *, piece: float = math.inf, parts: int = 1, holds: bool = False) -> Any:
    rules, memory = SimpleNamespace(base_batch_size=base, holds=holds), SimpleNamespace(piece=piece)
    return SimpleNamespace(rules=rules, memory=memory, batches_per_step=parts)


@pytest.mark.parametrize(
    ("base", "cut", "piece", "parts", "micro", "k"),
    [
        (16, 64, math.inf, 1, None, 4),
        (64, 16, math.inf, 1, None, 0.25),
        (16, 256, 64, 1, None, 4),  # memory ran out at more than 64, so there are four passes
        (16, 256, 64, 4, None, 16),  # of each of four batches of a step
        (32, 128, 8, 1, 8, 1),  # always accumulated from batches of 8
        (64, 32, 16, 1, None, 0.25),  # the base batch is a whole one, though memory would not hold it
    ],
)
def test_the_momentum_goes_by_the_samples_of_a_pass(base, cut, piece, parts, micro, k):
    norm = nn.BatchNorm1d(2)
    follow = FollowPassSize(norm, controller(base, piece=piece, parts=parts), micro)
    follow(cut)
    assert norm.momentum == pytest.approx(1 - 0.9**k)
    follow(None)
    assert norm.momentum == 0.1


def test_a_held_run_keeps_it():
    norm = nn.BatchNorm1d(2)
    FollowPassSize(norm, controller(16, holds=True), None)(64)
    assert norm.momentum == 0.1
