"""The stock run's counts, against a loop that makes them one by one as Lightning does."""

from __future__ import annotations

from itertools import combinations, product

import pytest

pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")

from adaptbs.lightning.plan import StockRun, last_multiple


def stepped(epoch_batches: int, accumulation: int, frequency: int) -> list[int]:
    """Numbers of the batches at which Lightning steps, and its scheduler with this frequency too."""
    return [
        number
        for number in range(1, epoch_batches + 1)
        if (number % accumulation == 0 or number == epoch_batches) and number % frequency == 0
    ]


@pytest.mark.parametrize(("accumulation", "frequency"), product(range(1, 6), range(1, 6)))
def test_steps_between_any_two_batches(accumulation, frequency):
    for epoch_batches in range(1, 14):
        plan = StockRun(8, 8 * epoch_batches - epoch_batches % 8, accumulation)
        assert plan.epoch_batches == epoch_batches
        assert plan.epoch_steps == len(stepped(epoch_batches, accumulation, 1))
        numbers = stepped(epoch_batches, accumulation, frequency)
        for before, after in combinations(range(epoch_batches + 1), 2):
            expected = sum(before < number <= after for number in numbers)
            assert plan.steps(before, after, frequency) == expected


def test_the_last_multiple():
    for every, before, more in product(range(1, 8), range(20), range(10)):
        passed = [n for n in range(before + 1, before + more + 1) if n % every == 0]
        assert last_multiple(every, before, before + more) == (passed[-1] if passed else None)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "epochs"),
    [
        (4, -1, 4),
        (-1, -1, None),
        (-1, 13, 1.0),
        (-1, 14, 1 + 16 / 203),
        (2, 100, 2),
        (2, 20, 1 + 112 / 203),
        (4, 52, 4),
    ],
)
def test_the_length_of_a_run(max_epochs, max_steps, epochs):
    assert StockRun(8, 203, accumulation=2).epochs(max_epochs, max_steps) == epochs  # 13 steps of 16, the last shorter


def test_places_in_an_epoch():
    plan = StockRun(8, 203)
    assert [plan.batches(position) for position in (0, 7, 8, 200, 203)] == [0, 0, 1, 25, 26]
