"""The limit of a run after memory has run out: found by halving a gap, with few more failures."""

import math
from collections.abc import Callable

import pytest
import torch

from adaptbs.memory.bracket import FURTHER, halfway
from adaptbs.memory.limit import MemoryLimit
from adaptbs.memory.pieces import run_in_pieces
from adaptbs.memory.search import Trial
from adaptbs.types import Decision
from tests.simulated_device import SimulatedMemory

WANTED = 256


@pytest.mark.parametrize(
    ("held", "failed", "size"),
    [
        (128, 256, 192),
        (64, 128, 96),
        (128, 144, 136),
        (128, 136, 128),  # no multiple of 8 lies between them
        (21, 32, 24),
        (17, 25, 24),
        (8, 12, 10),  # below 16 each size will do
        (15, 17, 16),
        (7, 8, 7),
        (0, 8, 4),
        (0, 1, 0),
    ],
)
def test_halfway(held, failed, size):
    assert halfway(held, failed) == size


class Run:
    """Batches of a run whose target always asks for WANTED samples, on a device that fails from some size on."""

    def __init__(self, fails_from: int, limit: MemoryLimit, start: int = 8, parts: int = 1) -> None:
        self.fails_from, self.limit, self.batch_size, self.parts = fails_from, limit, start, parts
        self.errors: list[int] = []
        limit.expect_pieces()

    def batch(self) -> None:
        samples = self.batch_size // self.parts

        def run(pieces: int) -> None:
            size = -(-samples // pieces)
            if size >= self.fails_from:
                self.errors.append(size)
                raise torch.OutOfMemoryError("CUDA out of memory.")

        _, fits = run_in_pieces(run, samples, self.limit, undo=lambda: None, least=lambda: 1)
        if fits is not None and not self.limit.may_be_exceeded:
            self.batch_size = min(self.batch_size, fits * self.parts)
        wish = Decision(WANTED * self.parts, "wish")
        self.batch_size = self.limit.clip(wish, self.batch_size, self.batch_size).batch_size

    def go(self, batches: int = 40) -> "Run":
        for _ in range(batches):
            self.batch()
        return self


def halvings(fails_from: int) -> int:
    """Errors of the first batch that runs out, which is run in halves until it fits."""
    return 1 + int(math.log2(WANTED / fails_from))


@pytest.mark.parametrize("fails_from", [30, 70, 100, 129, 136, 150, 200, 225, 249, 256])
def test_the_limit_is_found_with_three_more_failures_at_most(fails_from):
    run = Run(fails_from, MemoryLimit()).go()
    assert len(run.errors) <= halvings(fails_from) + FURTHER
    assert len(run.errors) == len(set(run.errors)), "no size fails twice"
    assert 0.8 * fails_from <= run.batch_size < fails_from
    assert run.batch_size % 8 == 0
    assert run.limit.piece == run.batch_size, "each batch is run in one go"
    before = list(run.errors)
    run.go()
    assert run.errors == before


def test_after_those_the_largest_that_ran_is_the_limit():
    run = Run(130, MemoryLimit()).go()
    assert (run.errors, run.batch_size) == ([256, 192, 160, 144], 128)


def test_a_search_goes_on_from_a_checkpoint():
    whole, run = Run(130, MemoryLimit()).go(), Run(130, MemoryLimit()).go(3)
    other = Run(130, MemoryLimit(), start=run.batch_size)
    other.limit.load_state_dict(run.limit.state_dict())
    assert run.errors + other.go().errors == whole.errors


def test_a_size_that_ran_before_and_fails_now_is_no_limit_any_more():
    run = Run(130, MemoryLimit()).go()
    run.fails_from = 100  # another process has taken memory
    run.go()
    assert run.batch_size == 64, "the failures of a run are counted together"
    assert run.errors == [256, 192, 160, 144, 128]


def test_pieces_past_the_cap_are_as_large_as_what_ran():
    run = Run(130, MemoryLimit(exceed=True)).go()
    assert run.batch_size == WANTED
    assert run.errors[0] == 256 and len(run.errors) <= 4
    assert run.limit.piece == 128


def test_accumulated_batches_keep_their_micro_batch():
    run = Run(20, MemoryLimit(micro_batch_size=16), start=16).go()
    assert (run.errors, run.batch_size, run.limit.piece) == ([], WANTED, 16)
    run = Run(12, MemoryLimit(micro_batch_size=16), start=16).go()
    assert (run.errors, run.batch_size, run.limit.piece) == ([16], WANTED, 8)


def test_batches_per_step_are_each_within_the_limit():
    run = Run(130, MemoryLimit(batches_per_step=3), parts=3).go()
    assert (run.errors, run.batch_size) == ([256, 192, 160, 144], 3 * 128)


def trial_that_fails(from_: int, failed: list[int]) -> Callable[[int], Trial]:
    def attempt(size: int) -> Trial:
        if size >= from_:
            failed.append(size)
        return Trial(size, None if size >= from_ else 1000 * size, 1000 * WANTED)

    return attempt


@pytest.mark.parametrize("fails_from", [100, 129, 136, 150, 200, 225, 249])
def test_trials_count_as_failures_too(fails_from):
    failed: list[int] = []
    memory = SimulatedMemory(1000 * WANTED)
    memory.take(8000), memory.give_back(8000)
    run = Run(fails_from, MemoryLimit(memory, attempt=trial_that_fails(fails_from, failed))).go()
    assert len(failed) + len(run.errors) <= 1 + FURTHER
    assert 0.5 * fails_from <= run.batch_size < fails_from
    assert run.limit.piece == run.batch_size


def test_the_least_of_all_ranks_counts():
    class Least:
        world_size = 2

        def least(self, value: float) -> float:
            return min(value, 40)

    limit = MemoryLimit(batches_per_step=2, ranks=Least())
    limit.ran(64)
    limit.fails(128)
    assert limit.clip(Decision(2 * WANTED, "wish"), 16, 128).batch_size == 80


def test_a_size_that_is_tried_again_counts_as_it_is_now():
    memory = SimulatedMemory(1000)  # of which 900 may be in use
    peaks = {64: iter([901, 800]), 128: iter([1700, 1701])}  # 64 fits at the second trial, as by fragments

    def attempt(size: int) -> Trial:
        return Trial(size, next(peaks[size]) if size in peaks else 800 + 3 * (size - 64), memory.limit())

    limit = MemoryLimit(memory, attempt=attempt)
    limit.ran(64)
    assert limit.find_largest(128) == 64  # which has run, though no trial fits
    assert 95 <= limit.find_largest(128) <= 97  # at which 899 are in use
