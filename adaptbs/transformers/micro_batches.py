"""Large batches in the form of micro-batches, and the parts of a step in which Trainer's loop takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..memory import bounds


class MicroBatches(list[Any]):
    """A delivered batch, collated as the micro-batches that go through the model one after another.

    Args:
        batches: the micro-batches.
        samples: samples of each.
    """

    def __init__(self, batches: Sequence[Any] = (), samples: Sequence[int] = ()) -> None:
        super().__init__(batches)
        self.samples = list(samples)


class CollateInMicroBatches:
    """Collates up to so many samples as one batch, and more of them as MicroBatches.

    Each micro-batch is padded by itself, as it would be by a stock loader.

    Args:
        collate: makes a batch of a list of samples.
        size: the most samples of a micro-batch.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], size: int) -> None:
        self._collate, self._size = collate, size

    def __call__(self, samples: list[Any]) -> Any:
        if len(samples) <= self._size:
            return self._collate(samples)
        cuts = bounds(len(samples), -(-len(samples) // self._size))
        parts = [samples[start:stop] for start, stop in pairwise(cuts)]
        return MicroBatches([self._collate(part) for part in parts], [len(part) for part in parts])


class Micro(NamedTuple):
    """A micro-batch of a step.

    Attributes:
        inputs: of the model.
        batch_share: its share of the samples of its batch.
        step_share: the same, of the step, all of whose batches count alike.
    """

    inputs: Any
    batch_share: float
    step_share: float


class StepPart(list[Micro]):
    """Micro-batches that Trainer's loop takes as one of its batches; it may be empty."""


def micro_batches(batches: Sequence[Any]) -> list[Micro]:
    """The micro-batches of a step's batches."""
    found: list[Micro] = []
    for batch in batches:
        whole = not isinstance(batch, MicroBatches)
        samples = [1] if whole else batch.samples
        for inputs, n in zip([batch] if whole else batch, samples, strict=True):
            share = n / sum(samples)
            found.append(Micro(inputs, share, share / len(batches)))
    return found


def parts_of_step(micros: Sequence[Micro], parts: int) -> list[StepPart]:
    """So many parts of a step. Those without a micro-batch come first: after the last the optimizer steps."""
    filled = min(parts, len(micros))
    cuts = [0] * (parts - filled) + bounds(len(micros), filled)
    return [StepPart(micros[start:stop]) for start, stop in pairwise(cuts)]
