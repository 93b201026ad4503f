"""Tells accelerate which iterations over a loader are under way, and which of them is at its last batch."""

from __future__ import annotations

from itertools import count
from typing import Any

from accelerate.state import GradientState

NOWHERE = False, -1


class Iterations:
    """The iterations over one loader that have begun and not ended.

    There may be several: a look at the data inside of the loop, or an iterator that was kept after a `break`. None of
    them ends another. The loader is told of each time, because whoever kept it would keep it alive.

    Args:
        state: accelerate's, which refers to the loader once for each iteration, in the order in which they began.
    """

    def __init__(self, state: GradientState) -> None:
        self._state, self._numbers = state, count()
        self._begun: list[int] = []  # their numbers, in that order
        self._places: dict[int, tuple[bool, int]] = {}  # the one that has delivered last is at the end

    @property
    def latest(self) -> tuple[bool, int]:
        """If the iteration that has delivered last is at its last batch, and the samples of that; else False and -1."""
        return next(reversed(self._places.values()), NOWHERE)

    def begin(self, loader: Any) -> int:
        """An iteration begins. Return its number."""
        number = next(self._numbers)
        self._begun.append(number)
        self._places[number] = NOWHERE
        self._state._add_dataloader(loader)
        return number

    def delivers(self, number: int, is_last: bool, remainder: int) -> None:
        """The iteration delivers a batch; see `AcceleratedLoader` for the arguments."""
        self._places.pop(number)
        self._places[number] = is_last, remainder

    def end(self, loader: Any, number: int) -> None:
        """The iteration is over, or nobody goes on with it."""
        place, state = self._begun.index(number), self._state
        del self._begun[place], self._places[number]
        if not state.initialized:
            return  # it was reset meanwhile, as between two tests
        loaders = state.dataloader_references
        own = [i for i, each in enumerate(loaders) if each is loader]
        for i in own[place : place + 1]:
            del loaders[i]
        state.dataloader_references = loaders
