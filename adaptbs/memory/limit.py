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
from .search import Trial, affordable, largest_fitting, search

log = logging.getLogger(__name__)

CLEAR = 2  # a size that would surely fit this many times over needs no trial


class MemoryLimit:
    """Remembers the batch sizes that the device's memory has held in this run, and those that it has not.

    All sizes are samples of one pass through the model, on one rank.

    The batch may grow where the larger one surely fits: from B to B' adds at most (B'/B - 1) times the bytes that B
    took. Where that is not certain, the size is tried first, if `attempt` is given.

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
        self._now: Trial | None = None  # the latest trial of the size of now

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
        below = math.inf if self.smallest_failed is None else self.smallest_failed - 1
        if self._accumulates:
            return math.inf
        if self.memory is None or wanted <= self.largest_run or not self.largest_run:
            return below
        here = Trial(self.largest_run, self.memory.peak(), self.memory.limit(), self.memory.in_use())
        if self._attempt is None or self.memory.careful:
            return self._set_piece(min(max(affordable(here), self.largest_run), below), wanted)
        clearly = max(affordable(here) / CLEAR, self.largest_run, self._tried)
        aim = int(min(wanted, below))
        if aim <= clearly:
            return self._set_piece(aim, wanted)
        try:
            known = here if affordable(here) >= aim else self._try_now(here)
            trials = search(self._attempt, aim, aim, known=[known]) if known.fits else [known]
        except Exception as error:  # not of memory, so training itself may well go on
            log.warning("a larger batch cannot be tried, so it grows as far as it surely fits: %s", error)
            self._attempt = None
            return self._set_piece(min(max(affordable(here), self.largest_run), below), wanted)
        self._tried = max(largest_fitting(trials) or 0, self._tried)
        for trial in trials[1:]:
            if trial.peak is None:
                self.fails(trial.batch_size)
            elif trial.batch_size == self._tried:
                self._now = trial
        log.info("batches of %s were tried: %d fits", [trial.batch_size for trial in trials[1:]], self._tried)
        return self._set_piece(max(self._tried, self.largest_run), wanted)

    def _try_now(self, here: Trial) -> Trial:
        """A trial of the present size, whose peak so far may be that of something else, as of an earlier run."""
        assert self._attempt is not None
        if self._now is None or self._now.batch_size != self.largest_run:
            self._now = self._attempt(self.largest_run)
        if self._now.peak is None or here.peak is None or self._now.peak >= here.peak:
            return here
        return replace(here, peak=self._now.peak)

    def _set_piece(self, largest: float, wanted: int) -> float:
        self.piece = math.inf if self.smallest_failed is None and largest >= wanted else int(largest)
        return largest

    def ran(self, size: int) -> None:
        """Take note of a pass of so many samples that memory has held."""
        if self.smallest_failed is None or size < self.smallest_failed:
            self.largest_run = max(size, self.largest_run)

    def fails(self, size: int) -> None:
        """Take note of memory that ran out in a pass of so many samples."""
        self.smallest_failed = size if self.smallest_failed is None else min(size, self.smallest_failed)
        self.piece = min(self.piece, size - 1)
        self.largest_run, self._tried = min(self.largest_run, size - 1), min(self._tried, size - 1)

    def run_no_more_than(self, size: int) -> None:
        """Run no more than so many samples in one go from here on, because larger pieces have failed."""
        self.piece = size

    def release(self) -> None:
        """Have the device give back what is kept for later."""
        if self.memory is not None:
            self.memory.release()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("largest_run", "smallest_failed", "piece", "_tried")


def within_memory(decision: Decision, largest: float) -> Decision:
    """The decision, where memory holds no more than so many samples."""
    return replace(decision, batch_size=int(largest), reason="memory") if decision.batch_size > largest else decision
