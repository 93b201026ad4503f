"""Tells what is waited for in a reading of measurements from what is waited for between two of them."""

from __future__ import annotations

from typing import Any

from adaptbs.run.controller import Controller
from tests.helpers.waits import Waits

FIRST = 3  # readings: the measurements before look at what kind of loss this is


def waits_outside_of_readings(
    waits: Waits, monkeypatch: Any, kind: type = Controller, readings: tuple[str, ...] = ("_take_in", "_decide")
) -> list[tuple[str, str]]:
    """What is waited for from the third reading on, other than in a reading or a decision.

    Args:
        waits: counts all that is waited for.
        monkeypatch: pytest's.
        kind: the class whose methods read and decide.
        readings: the names of those methods.
    """
    outside: list[tuple[str, str]] = []
    seen = {"readings": 0, "from": 0, "depth": 0}

    def watched(method: Any) -> Any:
        def reading(self: Any, *args: Any, **arguments: Any) -> Any:
            seen["readings"] += 1
            if seen["readings"] > FIRST and not seen["depth"]:
                outside.extend(waits.found[seen["from"] :])
            seen["depth"] += 1
            result = method(self, *args, **arguments)
            seen["depth"] -= 1
            seen["from"] = len(waits.found)
            return result

        return reading

    for name in readings:
        monkeypatch.setattr(kind, name, watched(getattr(kind, name)))
    return outside
