"""Large batches as micro-batches, and the parts of a step in which Trainer's loop takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..memory import bounds
from ..model import NotCutError, Split, batch_length, certain_split, why_not_cut


class Piece(NamedTuple):
    """A micro-batch, and the number of its samples."""

    inputs: Any
    samples: int


class MicroBatches(list[Piece]):
    """A delivered batch that was collated as micro-batches, which go through the model one after another."""


class CollateInMicroBatches:
    """Collates up to `size` samples as one batch, and more samples as MicroBatches.

    Each micro-batch is padded by itself, as by a stock loader.

    Args:
        collate: makes a batch from a list of samples.
        size: the most samples of a micro-batch.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], size: int) -> None:
        self._collate, self._size = collate, size

    def __call__(self, samples: list[Any]) -> Any:
        if len(samples) <= self._size:
            return self._collate(samples)
        cuts = bounds(len(samples), -(-len(samples) // self._size))
        parts = [samples[start:stop] for start, stop in pairwise(cuts)]
        return MicroBatches(Piece(self._collate(part), len(part)) for part in parts)


def split_rows(batch: Any, start: int, stop: int) -> Any:
    """Samples start:stop of a batch. Raises NotCutError where its rows are not known to be samples."""
    try:
        rows = batch_length(batch)
    except TypeError:  # certain_split() says why
        rows = stop
    # Said first: the lengths of texts beside their one row are of no sample, either.
    if rows < stop or (rows == 1 and why_not_cut(batch)):
        seen = "one row of its samples" if rows == 1 else f"{rows} rows of at least {stop} samples"
        raise NotCutError(
            f"the batch has {seen}, as where the data collator packs them into one "
            "sequence. Let it pad them, let the dataset pack them into rows, of which a batch has several, or give "
            "split=(batch, start, stop) -> batch"
        )
    return certain_split(batch, start, stop)


class SplitMicroBatches:
    """Slices a batch that CollateInMicroBatches has made.

    Args:
        split: slices a micro-batch.
    """

    def __init__(self, split: Split) -> None:
        self._split = split

    def __call__(self, batch: Any, start: int, stop: int) -> Any:
        if not isinstance(batch, MicroBatches):
            return self._split(batch, start, stop)
        parts, begins = MicroBatches(), 0
        for inputs, n in batch:
            first, last = max(start - begins, 0), min(stop - begins, n)
            if first < last:
                whole = last - first == n
                parts.append(Piece(inputs if whole else self._split(inputs, first, last), last - first))
            begins += n
        return parts


class Micro(NamedTuple):
    """A micro-batch of a step.

    Attributes:
        inputs: inputs of the model.
        batch_share: share of the samples of its batch.
        step_share: share of its step, in which all batches count alike.
    """

    inputs: Any
    batch_share: float
    step_share: float


class StepPart(list[Micro]):
    """Micro-batches that Trainer's loop takes as one of its batches. May be empty."""


def micro_batches(batches: Sequence[Any]) -> list[Micro]:
    """The micro-batches of a step's batches."""
    found: list[Micro] = []
    for batch in batches:
        pieces = batch if isinstance(batch, MicroBatches) else [Piece(batch, 1)]
        samples = sum(piece.samples for piece in pieces)
        found += [Micro(inputs, n / samples, n / samples / len(batches)) for inputs, n in pieces]
    return found


def parts_of_step(micros: Sequence[Micro], parts: int) -> list[StepPart]:
    """Distribute micro-batches over `parts` parts of a step. Empty parts come first: the last ends the step."""
    filled = min(parts, len(micros))
    cuts = [0] * (parts - filled) + bounds(len(micros), filled)
    return [StepPart(micros[start:stop]) for start, stop in pairwise(cuts)]
