"""How large a batch may become in a run, by what memory has held so far, and by trying."""

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
    """Remembers which sizes a device has held in this run, and which it has not. All are of a pass through the model.

    Growth past what has been run is allowed where it surely fits: from B to B' adds at most (B'/B - 1) of what B took.
    Where that is not clear, it is tried before it is done, if somebody can (`attempt`).

    Args:
        memory: of the device that trains; None where it is not to be asked, then only what ran out is known.
        exceed: whether larger batches are wanted then.
        parts: passes through the model that make up a step, of all ranks together.
        ranks: that have to come to the same.

    Attributes:
        attempt: tries a step of so many samples and leaves no trace of it; None where nobody can.
        has_run: the largest size that the run has run, samples.
        ran_out: the smallest that memory ran out at; None before the first.
        piece: the largest to be run in one go.
        in_pieces: whether there is somebody who runs larger batches in pieces.
    """

    def __init__(
        self, memory: DeviceMemory | None = None, exceed: bool = False, parts: int = 1, ranks: Ranks = ALONE
    ) -> None:
        self.memory, self._exceed, self._parts, self._ranks = memory, exceed, parts, ranks
        self.in_pieces = self._accumulates = False
        self.attempt: Callable[[int], Trial] | None = None
        self.has_run = 0
        self.ran_out: int | None = None
        self.piece = math.inf
        self._tried = 0  # the largest size that a trial has found to fit
        self._now: Trial | None = None  # the latest of the size that runs

    @property
    def may_be_exceeded(self) -> bool:
        """Whether batches larger than memory holds may be decided on."""
        return self._exceed and self.in_pieces

    def within(self, wish: Decision, batch_size: int, longest: int) -> Decision:
        """What every rank's memory holds of a decision, in equal parts; never less than now, for that is running.

        Args:
            wish: the size of a step, samples.
            batch_size: of a step now, samples.
            longest: of the deliveries so far, to all ranks together, samples.
        """
        parts, size = self._parts, wish.batch_size
        if not self.in_pieces:  # (who does that tells what it has run)
            self.ran(longest // self._ranks.world_size)
        if size > batch_size:
            fits = parts * self._ranks.least(self.most(-(-size // parts)))
            if not self.may_be_exceeded:
                wish = within_memory(wish, max(fits, batch_size))
        whole = parts * int(self.piece) if self._accumulates else parts  # (pieces of the same length)
        return replace(wish, batch_size=max(wish.batch_size // whole, 1) * whole)

    def accumulate(self, piece: int) -> None:
        """Never run more than so many samples in one go, and let that be no limit to the batch."""
        self.piece, self._exceed, self._accumulates = piece, True, True

    def most(self, wanted: int) -> float:
        """The largest size up to `wanted` that memory holds, as far as that is known; `inf` where nothing is."""
        below = math.inf if self.ran_out is None else self.ran_out - 1
        if self._accumulates:
            return math.inf
        if self.memory is None or wanted <= self.has_run or not self.has_run:
            return below
        here = Trial(self.has_run, self.memory.peak(), self.memory.limit(), self.memory.in_use())
        if self.attempt is None or self.memory.careful:
            return self._set(min(max(affordable(here), self.has_run), below), wanted)
        clearly = max(affordable(here) / CLEAR, self.has_run, self._tried)
        aim = int(min(wanted, below))
        if aim <= clearly:
            return self._set(aim, wanted)
        try:
            known = here if affordable(here) >= aim else self._at_now(here)
            trials = search(self.attempt, aim, aim, known=[known]) if known.fits else [known]
        except Exception as error:  # (not of memory; training itself may well go on)
            log.warning("a larger batch cannot be tried, so it grows as far as it surely fits: %s", error)
            self.attempt = None
            return self._set(min(max(affordable(here), self.has_run), below), wanted)
        self._tried = max(largest_fitting(trials) or 0, self._tried)
        for trial in trials[1:]:
            if trial.peak is None:
                self.fails(trial.batch_size)
            elif trial.batch_size == self._tried:
                self._now = trial
        log.info("batches of %s were tried: %d fits", [trial.batch_size for trial in trials[1:]], self._tried)
        return self._set(max(self._tried, self.has_run), wanted)

    def _at_now(self, here: Trial) -> Trial:
        """The size that runs, by a trial if the peak may be of something else: of an earlier run in this process."""
        assert self.attempt is not None
        if self._now is None or self._now.batch_size != self.has_run:
            self._now = self.attempt(self.has_run)
        if self._now.peak is None or here.peak is None or self._now.peak >= here.peak:
            return here
        return replace(here, peak=self._now.peak)

    def _set(self, most: float, wanted: int) -> float:
        self.piece = math.inf if self.ran_out is None and most >= wanted else int(most)
        return most

    def ran(self, size: int) -> None:
        """Take note of a step of so many samples that memory has held."""
        if self.ran_out is None or size < self.ran_out:
            self.has_run = max(size, self.has_run)

    def fails(self, size: int) -> None:
        """Take note of memory that ran out in a step of so many samples."""
        self.ran_out = size if self.ran_out is None else min(size, self.ran_out)
        self.piece = min(self.piece, size - 1)
        self.has_run, self._tried = min(self.has_run, size - 1), min(self._tried, size - 1)

    def release(self) -> None:
        """Have the device give back what is kept for later."""
        if self.memory is not None:
            self.memory.release()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("has_run", "ran_out", "piece", "_tried")


def within_memory(decision: Decision, memory: float) -> Decision:
    """The decision, where memory holds no more than so many samples."""
    return replace(decision, batch_size=int(memory), reason="memory") if decision.batch_size > memory else decision
