"""The adaptive loader as Lightning sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Hidden, because the callback saves it. Lightning would save it too, and load it into the stock loader.
OUR_STATE = ("state_dict", "load_state_dict")


class LoaderView:
    """Replaces a Trainer's loader. It begins to iterate when the first batch is asked for.

    Args:
        loader: the adaptive loader.
        sampler: yields its indices. Lightning gives it the number of the epoch.
        batches: returns the batches of an epoch.
    """

    def __init__(self, loader: Any, sampler: Any, batches: Callable[[], Iterator[Any]]) -> None:
        self._loader, self.sampler, self._batches = loader, sampler, batches

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._batches()  # a generator

    def __getattr__(self, name: str) -> Any:
        if name in OUR_STATE or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)
