"""Waits for the work on an iteration's last batch, where the loop fetches one ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..run import on_backward


class LastBatch:
    """Notices the backward pass of a batch that was fetched ahead, when the iteration over the loader has ended."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    @property
    def is_awaited(self) -> bool:
        """True while the loop has not come to work on it."""
        return bool(self._handles)

    def wait(self, parameters: Iterable[Tensor]) -> None:
        """Wait for a backward pass that reaches any of these."""
        self._handles = on_backward(parameters, self.stop)

    def stop(self, *_: object) -> None:
        """Wait no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
