"""The largest batch that memory holds in a run, found by trials and by the batches that ran."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..ranks import ALONE, Ranks
from ..types import Decision
from .bracket import Bracket
from .device import DeviceMemory
from .readings import PeakReadings
from .search import Trial, affordable, largest_fitting, search

log = logging.getLogger(__name__)

FACTOR = 2  # largest growth where no size can be tried, so that the next peak shows if this one was believable


class MemoryLimit:
    """Limits a run's batch to what the device's memory holds.

    All sizes are samples of one pass through the model, on one rank.

    If sizes can be tried, each is tried once before the batch grows to it. The device's statistics only suggest the
    size to try first, because the user's loop may reset them, and an earlier run may have left its peak in them.

    If no size can be tried, the batch grows to a size that surely fits: growing from B to B' adds at most (B'/B - 1)
    times the bytes that B took. On a GPU it then doubles at most. It stays if the readings show that the loop resets
    the peak.

    Once memory has run out, the gap between the sizes that ran and those that failed is halved (`Bracket`).

    Args:
        memory: the memory of the device that trains. None: it is not read, and only sizes that ran out are known.
        exceed: True allows batches that are larger than memory holds, to be run in pieces.
        batches_per_step: passes through the model that make up a step, of all ranks together.
        ranks: the ranks that must agree on the size.
        attempt: function (samples) -> trial. It runs a step of that size and leaves no trace. None: no size can be
            tried.
        micro_batch_size: the most samples that go through the model at once, if larger batches are accumulated. Then
            the batch itself has no limit.

    Attributes:
        memory: the memory of the device, as given.
        piece: the most samples that go through the model at once.
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
        self._in_pieces = False  # True once the loop's steps run in pieces when memory runs out
        self.piece: float = micro_batch_size if micro_batch_size is not None else math.inf
        self._bracket = Bracket()
        self._readings = PeakReadings(memory.peak()) if memory is not None else None
        self._trials: dict[int, Trial] = {}  # by their size, samples

    def expect_pieces(self, there_are: bool = True) -> None:
        """Expect the loop's steps to run in pieces when memory runs out, and to report the sizes that fitted."""
        self._in_pieces = there_are

    @property
    def largest_run(self) -> int:
        """The largest size that the run has run, samples."""
        return self._bracket.largest_run

    @property
    def smallest_failed(self) -> int | None:
        """The smallest size that memory ran out at, samples; None before the first."""
        return self._bracket.smallest_failed

    @property
    def may_be_exceeded(self) -> bool:
        """True if the batch may grow beyond what memory holds at once."""
        return self._exceed and self._in_pieces

    def clip(self, decision: Decision, batch_size: int, longest: int) -> Decision:
        """Cut a decision down to a size that every rank's memory holds. May run trials to find it.

        The size is never cut below the present one, which is known to run. It always divides into equal passes.

        Args:
            decision: the wanted size, samples of a step.
            batch_size: the present size, samples of a step.
            longest: the longest batch so far, samples of all ranks together.
        """
        per_step, size = self._batches_per_step, decision.batch_size
        if not self._in_pieces:  # else the steps report what ran
            self.ran(longest // self._ranks.world_size)
        if size > batch_size:
            fits = per_step * self._ranks.least(self.find_largest(-(-size // per_step)))
            if not self.may_be_exceeded:
                decision = within_memory(decision, max(fits, batch_size))
        unit = per_step * int(self.piece) if self._accumulates else per_step  # so that all passes are equally long
        return replace(decision, batch_size=max(decision.batch_size // unit, 1) * unit)

    def find_largest(self, wanted: int) -> float:
        """Find the largest size up to `wanted` that memory holds. May run trials. inf: no limit is known."""
        if self._accumulates:
            return math.inf
        most = self._bracket.largest_allowed
        if wanted <= self.largest_run:
            return most
        if self.memory is None or not self.largest_run:
            return self._set_piece(most, wanted)
        if self._attempt is None or not self.memory.sees_trials:
            return self._set_piece(min(self._surely_fits(), most), wanted)
        aim = int(min(wanted, most))
        if aim > self._bracket.largest_held:
            try:
                self._try_up_to(aim)
            except Exception as error:  # memory did not run out, so training itself can go on
                log.warning("a larger batch cannot be tried, so it grows as far as it surely fits: %s", str(error))
                self._attempt = None
                return self._set_piece(min(self._surely_fits(), most), wanted)
            aim = min(self._bracket.largest_held, aim)
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
                "the peak of the device's memory does not rise with the batch, probably because the loop resets "
                "it, and no size can be tried, so the batch stays: leave out torch.cuda.reset_peak_memory_stats()"
            )
        return self.largest_run

    def _by_statistics(self) -> Trial:
        assert self.memory is not None
        return Trial(self.largest_run, self.memory.peak(), self.memory.limit(), self.memory.in_use())

    def _try_up_to(self, aim: int) -> None:
        """Find the largest size up to `aim` that fits, by as few trials as possible."""
        assert self.memory is not None
        limit, careful, before = self.memory.limit(), self.memory.careful, set(self._trials)

        def known() -> list[Trial]:
            """One trial of each size, the latest, within the limit of now."""
            return [replace(trial, limit=limit) for trial in self._trials.values()]

        if not any(trial.fits for trial in known()):
            first = aim if not careful and affordable(self._by_statistics()) >= aim else self.largest_run
            if not self._try(first).fits and first == aim:
                self._try(self.largest_run)
        found = known()
        if any(trial.fits for trial in found):
            left = self._bracket.failures_left
            found = search(self._try, aim, aim, known=found, careful=careful, most_failures=left)
        self._bracket.fits(largest_fitting(found) or 0)
        tried = sorted(self._trials.keys() - before)
        log.info("batches of %s were tried: %d fits", tried, self._bracket.largest_tried)

    def _try(self, size: int) -> Trial:
        assert self._attempt is not None
        trial = self._attempt(size)
        if trial.peak is None and size != self.largest_run:  # that size runs, even if a trial of it does not
            self.fails(size)
        self._trials[size] = trial
        return trial

    def _set_piece(self, largest: float, wanted: int) -> float:
        known = self.smallest_failed is not None or largest < wanted
        self.piece = max(int(largest), self.largest_run, 1) if known else math.inf
        return largest

    def ran(self, size: int) -> None:
        """Record a pass of `size` samples that memory has held."""
        self._bracket.ran(size)

    def fails(self, size: int, *, again: bool = False) -> None:
        """Record a pass of `size` samples that memory ran out in. `again`: after a larger piece of the same batch."""
        self._bracket.fails(size, again=again)
        self.piece = min(self.piece, size - 1)
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
        """Return cached blocks to the device."""
        if self.memory is not None:
            self.memory.release()

    def state_dict(self) -> dict[str, Any]:
        return {**self._bracket.state_dict(), "piece": self.piece}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bracket.load_state_dict(state)
        self.piece = state["piece"]


def within_memory(decision: Decision, largest: float) -> Decision:
    """The decision, cut to the `largest` size that memory holds, samples."""
    return replace(decision, batch_size=int(largest), reason="memory") if decision.batch_size > largest else decision
