"""Notices a loop that draws `len(loader)` batches by `next()`, where larger batches are fewer."""

from __future__ import annotations

import dis
import sys
from types import FrameType
from typing import Any

from ..run import TrainingRun
from .length_warnings import BY_COUNT

DRAWN = (
    "batches are drawn by next(), with nothing to catch StopIteration, in a loop that asks for len(loader). Larger "
    "batches are fewer, and it would end in that error, so the batch is held. Write `for batch in loader`, or begin an "
    "iteration anew by `except StopIteration`."
)
CALLS = ("CALL", "PRECALL")  # Python 3.11 makes some calls in the second


class DrawnByCount:
    """Holds the batch of `for _ in range(len(loader)): batch = next(batches)`.

    Such a loop is known by three things: its first `next()` is no `for`'s, no `try` is around it, and the code of the
    same module has asked for the loader's length. One batch that is looked at is no such loop: it trains on none while
    the iteration lasts.

    Args:
        run: the training run.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._asked_by: set[object] = set()  # names of modules that have asked for the length
        self._drawn_by: object = None  # the module whose bare next() has begun the latest iteration
        self._holds = False

    def asked(self, caller: FrameType) -> None:
        """Take note that the length was asked for."""
        self._asked_by.add(caller.f_globals.get("__name__"))

    def begins(self, caller: FrameType) -> None:
        """Take note of an iteration, whose first batch is asked for."""
        caller = _of_the_loop(caller)
        self._drawn_by = caller.f_globals.get("__name__") if is_bare_next(caller) else None
        if self._holds and self._drawn_by is None:
            self._holds = False
            self._run.controller.holds.remove(BY_COUNT)

    def ends(self) -> None:
        """Take note that the iteration is over."""
        self._drawn_by = None

    def trains(self) -> None:
        """Take note of a backward pass or a step in that iteration."""
        drawn = self._drawn_by is not None and self._drawn_by in self._asked_by
        if drawn and not self._holds and self._run.controller.rules.may_change:
            self._holds = True
            self._run.controller.holds.doubt(BY_COUNT, DRAWN)


def _of_the_loop(caller: FrameType) -> FrameType:
    """The frame that asks for a batch. An adapter's generator, which fetches one ahead, may stand between."""
    while caller.f_globals.get("__name__", "").startswith("adaptbs.") and caller.f_back is not None:
        caller = caller.f_back
    return caller


def is_bare_next(caller: FrameType) -> bool:
    """True if a frame is at a call, not at a `for`, and nothing around it would catch what that raises.

    Python 3.10 does not tell what is around it. There it is False.
    """
    code, at = caller.f_code, caller.f_lasti
    operation, arguments = code.co_code[at : at + 2]
    if dis.opname[operation] not in CALLS or arguments > 1:  # next() with a default raises nothing
        return False
    handlers: Any = getattr(dis.Bytecode(code), "exception_entries", None)
    return handlers is not None and not any(each.start <= at < each.end for each in handlers)


def frame(depth: int) -> FrameType:
    """The frame so many calls above the caller's."""
    return sys._getframe(depth + 1)
