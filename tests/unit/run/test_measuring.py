"""Which lengths of batches a measured step is told, by which it knows where the examples are."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from adaptbs.run.holds import Holds
from adaptbs.run.measuring import StepMeasuring


class Told:
    """A meter that keeps the lengths that it is told."""

    in_step, is_armed, looks, fewest = True, True, False, 2

    def begin(self, batch, samples, sizes):
        self.sizes = set(sizes)


@pytest.mark.parametrize(
    ("samples", "ranks", "piece", "sizes"),
    [
        (40, 1, math.inf, {40}),
        (40, 2, math.inf, {20}),
        (40, 1, 40, {40}),
        (40, 1, 8, {40, 8}),  # five of 8
        (40, 1, 12, {40, 10}),  # four of 10
        (41, 1, 12, {41, 10, 11}),
        (40, 2, 8, {20, 6, 7}),
    ],
)
def test_batches_and_the_pieces_that_they_go_through_in(samples, ranks, piece, sizes):
    info, meter = SimpleNamespace(num_samples=samples), Told()
    controller = SimpleNamespace(
        memory=SimpleNamespace(piece=piece), measuring_step=lambda: None, measured=lambda made: None,
        holds=Holds(), batches_per_step=ranks,
    )  # fmt: skip
    tracker = SimpleNamespace(current=info, latest_fetched=info)
    sums = SimpleNamespace(look=lambda meter: None)
    StepMeasuring(meter, controller, tracker, sums, world_size=ranks).begin(None)
    assert meter.sizes == sizes
