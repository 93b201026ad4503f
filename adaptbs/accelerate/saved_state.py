"""The state of a loader among the objects that an Accelerator saves."""

from __future__ import annotations

import weakref
from typing import Any

from accelerate import Accelerator

from ..loader import AdaptedLoader


class SavedState:
    """The state of a loader, as accelerate saves and loads it. It keeps no loader, which would keep its model.

    After `accelerator.free_memory()` a loader is dropped, and its state is not among those that are saved any more.

    Args:
        loader: the loader.
        saved: the objects that the accelerator saves.
    """

    def __init__(self, loader: AdaptedLoader, saved: list[Any]) -> None:
        self._loader = weakref.ref(loader)
        weakref.finalize(loader, _drop, weakref.ref(self), saved)

    def is_of(self, accelerator: Accelerator) -> bool:
        """True unless the accelerator has been told to forget the loader."""
        loader = self._loader()
        return any(each is loader for each in accelerator._dataloaders)

    def state_dict(self) -> dict[str, Any]:
        loader = self._loader()
        return {} if loader is None else loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        loader = self._loader()
        if loader is not None:
            loader.load_state_dict(state)


def _drop(state_of: weakref.ref[SavedState], saved: list[Any]) -> None:
    """Take the state of a loader that is gone out of those that are saved."""
    state = state_of()
    saved[:] = [each for each in saved if each is not state]
