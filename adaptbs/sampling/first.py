"""The first indices of each epoch that a sampler yields, for a loop that asks it for no more."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from .draw import Draw, OwnDraw, draw


class FirstSampler(Sampler[Any], OwnDraw):
    """Yields the first indices of a sampler, and asks it for none beyond them.

    A loop that counts its batches does not ask for one beyond the last. The sampler does not notice then that its epoch
    is over: RandomSampler does not make the draw that it makes after its last index, which shows in a generator of the
    user's.

    Args:
        sampler: yields indices, has a length.
        most: indices of an epoch at most; None: all.
        asks_on: True if the loop asks for what follows the sampler's last index.
    """

    def __init__(self, sampler: Any, most: int | None = None, *, asks_on: bool = False) -> None:
        self._sampler, self._most, self._asks_on = sampler, most, asks_on
        if hasattr(sampler, "generator"):
            self.generator = sampler.generator

    @property
    def most(self) -> int | None:
        """Indices of an epoch at most; None: all."""
        return self._most

    def deliver(self, most: int | None) -> None:
        """Yield so many indices at most in epochs that begin from here on; None: all."""
        self._most = most

    def set_epoch(self, epoch: int) -> None:
        """Hand the number of the epoch on to a sampler that takes one, as DistributedSampler."""
        if callable(handed_on := getattr(self._sampler, "set_epoch", None)):
            handed_on(epoch)

    def __len__(self) -> int:
        length = len(self._sampler)
        return length if self._most is None else min(length, self._most)

    def __iter__(self) -> Any:
        return self.draw().indices

    def draw(self, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
        """See the function of this name."""
        drawn, most = draw(self._sampler, recipe, position), len(self)
        if self._asks_on and most == len(self._sampler):
            return drawn
        order = None if drawn.order is None else drawn.order[: most - drawn.first]
        return Draw(islice(drawn.indices, max(most - position, 0)), drawn.recipe, order, drawn.first)
