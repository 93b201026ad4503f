"""The largest batch that memory holds in a run, by what has fitted so far, and by trying."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..ranks import ALONE, Ranks
from ..types import Decision
from .device import DeviceMemory
from .readings import PeakReadings
from .search import Trial, affordable, largest_fitting, search

log = logging.getLogger(__name__)

FURTHER = 3  # times that memory may run out after the first, while the largest size that it holds is searched for
FACTOR = 2  # growth at once where no size can be tried, so that the next peak shows whether this one was believable
LIKED, FROM = 8, 16  # from 16 samples on, devices compute multiples of 8 in less time


class MemoryLimit:
    """Remembers the batch sizes that the device's memory has held in this run, and those that it has not.

    All sizes are samples of one pass through the model, on one rank.

    Each size is tried once before the batch grows to it, if `attempt` is given. The device's statistics only say which
    size to try first: the user's loop may reset them, and an earlier run may have left its peak in them. Where no size
    can be tried, the batch grows where the larger one surely fits: from B to B' adds at most (B'/B - 1) times the bytes
    that B took. On a GPU it then doubles at most, and stays where the readings show that the loop resets the peak.

    Once memory has run out, the gap between the largest size that ran and the smallest that failed is halved. After
    FURTHER more failures the search ends, and the largest size that ran is the limit.

    Args:
        memory: the memory of the device that trains. None: it is not read, and only sizes that ran out are known.
        exceed: True if batches larger than memory holds are wanted, to be run in pieces.
        batches_per_step: passes through the model that make up a step, of all ranks together.
        ranks: the ranks that have to come to the same size.
        attempt: runs a step of so many samples and leaves no trace of it. None: no size can be tried.
        micro_batch_size: the most samples that go through the model at once, where larger batches are accumulated. The
            batch itself has no limit then.

    Attributes:
        memory: as given.
        largest_run: the largest size that the run has run, samples.
        smallest_failed: the smallest size that memory ran out at, samples; None before the first.
        piece: the largest size that goes through the model at once, samples.
    """

    def __init__(
        self,
        memory: DeviceMemory | None = None,
        exceed: bool = False,
        batches_per_step: int = 1,
        ranks: Ranks = ALONE,
        attempt: Callable[[int], Trial] | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        self.memory, self._batches_per_step, self._ranks, self._attempt = memory, batches_per_step, ranks, attempt
        self._accumulates = micro_batch_size is not None
        self._exceed = exceed or self._accumulates
        self._in_pieces = False  # True once somebody runs batches in pieces where memory runs out
        self.largest_run = 0
        self.smallest_failed: int | None = None
        self.piece: float = micro_batch_size if micro_batch_size is not None else math.inf
        self._tried = 0  # the largest size that a trial has found to fit
        self._failures = 0  # batches and trials that memory ran out in
        self._readings = PeakReadings(memory.peak()) if memory is not None else None
        self._trials: dict[int, Trial] = {}  # by their size, samples

    def expect_pieces(self, there_are: bool = True) -> None:
        """Take note that somebody runs batches in pieces where memory runs out, and reports the sizes that fitted."""
        self._in_pieces = there_are

    @property
    def may_be_exceeded(self) -> bool:
        """True if batches larger than memory holds may be decided on."""
        return self._exceed and self._in_pieces

    def clip(self, decision: Decision, batch_size: int, longest: int) -> Decision:
        """Cut a decision down to a size that every rank's memory holds, which may be tried for that.

        The size is never cut below the present one, which is known to run, and always divides into equal passes.

        Args:
            decision: the wanted size, samples of a step.
            batch_size: the present size, samples of a step.
            longest: the longest batch so far, samples of all ranks together.
        """
        parts, size = self._batches_per_step, decision.batch_size
        if not self._in_pieces:  # whoever runs pieces reports their sizes
            self.ran(longest // self._ranks.world_size)
        if size > batch_size:
            fits = parts * self._ranks.least(self.find_largest(-(-size // parts)))
            if not self.may_be_exceeded:
                decision = within_memory(decision, max(fits, batch_size))
        whole = parts * int(self.piece) if self._accumulates else parts  # pieces of the same length
        return replace(decision, batch_size=max(decision.batch_size // whole, 1) * whole)

    def find_largest(self, wanted: int) -> float:
        """Find the largest size up to `wanted` that memory holds, by trying where need be; inf: no limit is known."""
        if self._accumulates:
            return math.inf
        most = self._most
        if wanted <= self.largest_run:
            return most
        if self.memory is None or not self.largest_run:
            return self._set_piece(most, wanted)
        if self._attempt is None or not self.memory.sees_trials:
            return self._set_piece(min(self._surely_fits(), most), wanted)
        aim = int(min(wanted, most))
        if aim > max(self.largest_run, self._tried):
            try:
                self._try_up_to(aim)
            except Exception as error:  # not of memory, so training itself may well go on
                log.warning("a larger batch cannot be tried, so it grows as far as it surely fits: %s", str(error))
                self._attempt = None
                return self._set_piece(min(self._surely_fits(), most), wanted)
            aim = min(max(self._tried, self.largest_run), aim)
        return self._set_piece(aim, wanted)

    def _surely_fits(self) -> float:
        """The largest size that surely fits, by the device's statistics and the largest size that ran."""
        assert self.memory is not None and self._readings is not None
        here = self._by_statistics()
        most = max(affordable(here), self.largest_run)
        if not self.memory.sees_trials:  # the peak of a whole process, which no loop resets
            return most
        known = not self._readings.were_reset
        self._readings.add(here)
        if not self._readings.were_reset:
            return min(most, FACTOR * self.largest_run)
        if known:
            log.warning(
                "the peak of the device's memory does not rise with the batch, as where the loop resets it, and no "
                "size can be tried, so the batch stays: leave out torch.cuda.reset_peak_memory_stats()"
            )
        return self.largest_run

    def _by_statistics(self) -> Trial:
        assert self.memory is not None
        return Trial(self.largest_run, self.memory.peak(), self.memory.limit(), self.memory.in_use())

    def _try_up_to(self, aim: int) -> None:
        """Find the largest size up to `aim` that fits, by as few trials as that takes."""
        assert self.memory is not None
        limit, careful, before = self.memory.limit(), self.memory.careful, set(self._trials)
        known = [replace(trial, limit=limit) for trial in self._trials.values()]
        if not any(trial.fits for trial in known):
            first = aim if not careful and affordable(self._by_statistics()) >= aim else self.largest_run
            known.append(self._try(first))
            if not known[-1].fits and first == aim:
                known.append(self._try(self.largest_run))
        if any(trial.fits for trial in known):
            left = max(1 + FURTHER - self._failures, 1)
            known = search(self._try, aim, aim, known=known, careful=careful, most_failures=left)
        self._tried = max(largest_fitting(known) or 0, self._tried)
        log.info("batches of %s were tried: %d fits", sorted(self._trials.keys() - before), self._tried)

    def _try(self, size: int) -> Trial:
        assert self._attempt is not None
        trial = self._attempt(size)
        if trial.peak is None and size != self.largest_run:  # that one runs, if a trial of it does not
            self.fails(size)
        self._trials[size] = trial
        return trial

    @property
    def _most(self) -> float:
        """The largest size that may be run or tried next, by what has run and what has failed; inf: nothing failed."""
        if self.smallest_failed is None:
            return math.inf
        held = max(self.largest_run, self._tried)
        return held if self._failures > FURTHER else halfway(held, self.smallest_failed)

    def _set_piece(self, largest: float, wanted: int) -> float:
        known = self.smallest_failed is not None or largest < wanted
        self.piece = max(int(largest), self.largest_run, 1) if known else math.inf
        return largest

    def ran(self, size: int) -> None:
        """Take note of a pass of so many samples that memory has held."""
        if self.smallest_failed is None or size < self.smallest_failed:
            self.largest_run = max(size, self.largest_run)

    def fails(self, size: int, *, again: bool = False) -> None:
        """Take note of memory that ran out in a pass of so many samples.

        Args:
            size: samples of the pass.
            again: True if a larger piece of the same batch has failed before. It counts as the same failure.
        """
        self.smallest_failed = size if self.smallest_failed is None else min(size, self.smallest_failed)
        self._failures += not again
        self.piece = min(self.piece, size - 1)
        # Memory has become less since a size ran that is as large as one that fails now: how much less is not known.
        self.largest_run = self.largest_run if self.largest_run < size else 0
        self._tried = self._tried if self._tried < size else 0
        self._trials = {tried: trial for tried, trial in self._trials.items() if tried < size}

    def fall_back(self, size: int) -> int:
        """Run no more than the largest size that ran in one go from here on, because larger pieces have failed.

        Args:
            size: samples of the piece that ran at last.

        Returns:
            The largest size that has run, samples.
        """
        self.piece = largest = max(size, self.largest_run)
        return largest

    def release(self) -> None:
        """Have the device give back what is kept for later."""
        if self.memory is not None:
            self.memory.release()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("largest_run", "smallest_failed", "piece", "_tried", "_failures")


def halfway(held: int, failed: int) -> int:
    """A size halfway between one that memory holds and one that it does not. `held` if no size between them is liked.

    From FROM samples on, the liked sizes are the multiples of LIKED.

    >>> halfway(128, 256), halfway(128, 144), halfway(128, 136), halfway(8, 12)
    (192, 136, 128, 10)
    """
    middle = (held + failed) // 2
    if middle < FROM:
        return middle
    below = middle - middle % LIKED
    return next((size for size in (below, below + LIKED) if held < size < failed), held)


def within_memory(decision: Decision, largest: float) -> Decision:
    """The decision, where memory holds no more than so many samples."""
    return replace(decision, batch_size=int(largest), reason="memory") if decision.batch_size > largest else decision
