"""The first indices that a sampler yields in each epoch, for a loop that asks for no more."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from .draw import Draw, OwnDraw, draw


class FirstSampler(Sampler[Any], OwnDraw):
    """Yields the first indices of a sampler, and asks it for none beyond them.

    A loop that counts its batches does not ask for one beyond the last. So the sampler does not notice that its epoch
    is over, and RandomSampler does not make the draw that it makes after its last index. The user's own generator shows
    the difference.

    Args:
        sampler: yields indices, and has a length.
        most: the most indices of an epoch. None: all.
        asks_on: True if the loop asks for an index beyond the sampler's last.
    """

    def __init__(self, sampler: Any, most: int | None = None, *, asks_on: bool = False) -> None:
        self._sampler, self._most, self._asks_on = sampler, most, asks_on
        if hasattr(sampler, "generator"):
            self.generator = sampler.generator

    @property
    def most(self) -> int | None:
        """The most indices of an epoch; None: all."""
        return self._most

    def deliver(self, most: int | None) -> None:
        """Yield at most `most` indices in epochs that begin from here on. None: all."""
        self._most = most

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch's number on to the sampler, if it takes one, as DistributedSampler does."""
        if callable(handed_on := getattr(self._sampler, "set_epoch", None)):
            handed_on(epoch)

    def __len__(self) -> int:
        length = len(self._sampler)
        return length if self._most is None else min(length, self._most)

    def __iter__(self) -> Any:
        return self.draw().indices

    def draw(self, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
        """Draw an epoch; see `OwnDraw`."""
        drawn, most = draw(self._sampler, recipe, position), len(self)
        if self._asks_on and most == len(self._sampler):
            return drawn
        order = None if drawn.order is None else drawn.order[: most - drawn.first]
        return Draw(islice(drawn.indices, max(most - position, 0)), drawn.recipe, order, drawn.first)
