"""Runs a batch in pieces that fit in memory, and weighs them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..model import add_note
from .limit import MemoryLimit
from .recovery import is_out_of_memory

log = logging.getLogger(__name__)
T = TypeVar("T")


def shares(weights: Sequence[float]) -> list[float]:
    """Each weight over their sum; equal shares if the sum is 0."""
    total = sum(weights)
    return [weight / total if total else 1 / len(weights) for weight in weights]


def run_in_pieces(
    run: Callable[[int], T],
    samples: int,
    limit: MemoryLimit,
    *,
    undo: Callable[[], None],
    least: Callable[[], int],
    why_not: Callable[[], str | None] | None = None,
) -> tuple[T, int | None]:
    """Run a batch in as few equal pieces as fit: whole, in halves, in quarters, ... Each attempt begins anew.

    Args:
        run: function (number of pieces) that runs the batch in them.
        samples: the batch's samples.
        limit: the memory limit of the run. It gets to know which sizes ran and which ran out.
        undo: undoes everything that `run` did before memory ran out.
        least: returns the fewest samples of a piece. Called when memory has run out.
        why_not: returns the reason why the batch cannot be cut, and the remedy; None if it can. Called before the first
            cut.

    Returns:
        The result of `run`; and, if memory ran out on the way, the largest size known to fit, else None.

    Raises:
        Exception: the error of `run`, if memory did not run out, or no smaller piece can be run.
    """
    pieces, failed = max(1, math.ceil(samples / limit.piece)), False
    asked, reason = pieces > 1, why_not() if pieces > 1 and why_not else None
    if reason is not None:
        pieces = 1
    while True:
        failure: Exception | None = None
        try:
            result = run(pieces)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if samples // (2 * pieces) < least():
                add_note(error, f"adaptbs ran this batch of {samples} in {pieces} pieces: no smaller one can be run")
                raise
            failure = error.with_traceback(None)  # its frames keep alive what the failed pass holds
        largest = -(-samples // pieces)
        if failure is None:
            limit.ran(largest)
            return result, limit.fall_back(largest) if failed else None
        # Outside of the except block, which keeps alive what the failed pass holds too.
        limit.fails(largest, again=failed)
        failed = True
        undo()
        limit.release()
        if not asked and why_not is not None:
            asked, reason = True, why_not()
        if reason is not None:
            add_note(failure, f"adaptbs did not run this batch of {samples} samples again in pieces: {reason}")
            raise failure
        pieces *= 2
        log.warning("memory ran out with %d samples, so they are run again in %d pieces: %s", samples, pieces, failure)
