"""Notices an optimizer that is stepped in the loop and trains something other than the loader's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod, WeakSet, finalize

from torch import Tensor
from torch.compiler import is_compiling
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..hyperparameters import is_followed

LOOKS, FEWER = 16, 4  # batches of the first iteration in which it would show, and of those that follow
BY_RULE = 3  # batches at which it was stepped that are no accident


class OtherOptimizer:
    """Watches the first batches of an iteration for steps of other optimizers, in the thread that iterates.

    An optimizer that a loader of its own follows is none of these, nor is one within the loader's or around it, which
    shares parameters with it. Those of the model are watched by what becomes of them.

    Args:
        optimizer: the loader's.
        parameters: returns the model's parameters.

    Attributes:
        is_watched_for: True while there is a step to wait for.
    """

    def __init__(self, optimizer: Optimizer, parameters: Callable[[], Iterable[Tensor]]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._stepped: WeakSet[Optimizer] = WeakSet()  # since the latest batch, which may be the last that is asked for
        self._batches: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # at which each was stepped
        self._left, self._looks, self._thread = 0, LOOKS, 0
        self._unhook: Callable[[], object] | None = None
        self.is_watched_for = False

    def begin(self, again: bool) -> None:
        """An iteration begins, in this thread. `again` is True if the one before has shown another optimizer."""
        self.stop()
        self._batches.clear()
        self._left, self._thread = LOOKS if again else self._looks, get_ident()
        self._looks = FEWER
        own, seen = id(self._optimizer), WeakMethod(self._steps)

        def steps(optimizer: Optimizer, *_: Any) -> None:  # torch should not be what keeps a model alive
            if id(optimizer) != own and (live := seen()) is not None:
                live(optimizer)

        self._unhook, self.is_watched_for = finalize(self, register_optimizer_step_post_hook(steps).remove), True

    def look(self) -> Optimizer | None:
        """Look at the steps since the latest batch. Return an optimizer that has been stepped at several batches."""
        stepped, self._stepped = list(self._stepped), WeakSet()
        self._left -= 1
        if not self._left:
            self.stop()
        if not stepped:
            return None
        for optimizer in stepped:
            self._batches[optimizer] = self._batches.get(optimizer, 0) + 1
            if self._batches[optimizer] == BY_RULE and self._is_another(optimizer):
                self.stop()
                return optimizer
        return None

    def stop(self) -> None:
        """Watch no longer."""
        if self._unhook is not None:
            self._unhook()
        self._unhook, self.is_watched_for, self._stepped = None, False, WeakSet()

    def _steps(self, optimizer: Optimizer) -> None:
        if not is_compiling() and get_ident() == self._thread:  # a compiled step is not seen
            self._stepped.add(optimizer)

    def _is_another(self, optimizer: Optimizer) -> bool:
        known = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        known |= {id(p) for p in self._parameters()}
        its = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return not is_followed(optimizer) and its.isdisjoint(known)
