"""The version of a saved state."""

from __future__ import annotations

from typing import Any

VERSION = 6  # of what `state_dict()` holds


def check_version(state: dict[str, Any]) -> None:
    """Raise ValueError unless a state was saved by an adaptbs that this one can read, TypeError if it is no state."""
    if not isinstance(state, dict):
        raise TypeError(f"state={state!r}: it must be what state_dict() returned")
    if state.get("version") != VERSION:
        raise ValueError(
            f"the state is of version {state.get('version')}, this adaptbs reads {VERSION}: "
            "finish the run with the adaptbs that began it, or start anew"
        )
