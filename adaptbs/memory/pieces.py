"""A batch in pieces: where it is cut, how the pieces are run, and what each counts for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from ..model import add_note, batch_length, slice_batch
from .limit import MemoryLimit
from .recovery import is_out_of_memory

log = logging.getLogger(__name__)
T = TypeVar("T")


def cut_in_pieces(batch: Any, pieces: int) -> list[Any]:
    """The batch in so many pieces, as equally long as can be."""
    if pieces == 1:
        return [batch]
    n = batch_length(batch)
    bounds = [n * i // pieces for i in range(pieces + 1)]
    return [slice_batch(batch, begin, end) for begin, end in pairwise(bounds)]


def shares(weights: Sequence[float]) -> list[float]:
    """Each over the sum of all; equal where all are 0."""
    total = sum(weights)
    return [weight / total if total else 1 / len(weights) for weight in weights]


def run_in_pieces(
    run: Callable[[int], T], samples: int, limit: MemoryLimit, *, undo: Callable[[], None], least: int
) -> tuple[T, int | None]:
    """Run a batch in as few equal pieces as fit: whole, in halves, in quarters, ...; each time from its beginning.

    Args:
        run: runs the batch in so many pieces.
        samples: the batch's samples.
        limit: knows what fits so far; what runs out is told to it.
        undo: takes back all that `run` has done before it ran out.
        least: samples that a piece must have.

    Returns:
        The result of `run`, and the largest size known to fit where a piece did not; else None.

    Raises:
        the error of memory that ran out, where there is no smaller piece.
    """
    pieces, failed = max(1, math.ceil(samples / limit.piece)), False
    while True:
        said = None
        try:
            result = run(pieces)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if samples // (2 * pieces) < least:
                add_note(error, f"adaptbs ran this batch of {samples} in {pieces} pieces: no smaller one can be run")
                raise
            said = str(error)
        largest = -(-samples // pieces)
        if said is None:
            limit.ran(largest)
            return result, limit.fall_back(largest) if failed else None
        # Outside of the except block, which keeps alive what the failed pass holds.
        limit.fails(largest, again=failed)
        failed = True
        undo()
        limit.release()
        pieces *= 2
        log.warning("memory ran out with %d samples, so they are run again in %d pieces: %s", samples, pieces, said)
