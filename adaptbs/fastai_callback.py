"""A fastai callback that costs nothing at the events it has no method for."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback


class QuickCallback(Callback):  # type: ignore[misc]
    """fastai's own takes long to find out that there is nothing to do, at each of eight events of every step."""

    def __call__(self, event_name: str) -> Any:
        """Handle an event; nothing where there is no method for it."""
        return super().__call__(event_name) if hasattr(type(self), event_name) else None
