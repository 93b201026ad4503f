"""Calls the user's `log=` for each measurement and decision of a run, and where memory ran out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..types import LogFunction

logger = logging.getLogger(__name__)

LOGGED = ("measurement", "decision", "out of memory")  # events; "start" would be repeated by a resumed run
# The batch of a measurement may differ from the run's, for example by an odd sample that was left out.
NOT_OF_A_MEASUREMENT = ("batch_size", "global_batch_size")


class LogHook:
    """Calls a user's function with the values of a record. If it raises, it is not called again, with one warning.

    Args:
        function: the function; None to log nothing. Copies and pickles log nothing: a logger belongs to its process.
    """

    def __init__(self, function: LogFunction | None) -> None:
        self._function = function

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Log a record of the history, if its event is one of `LOGGED`."""
        if self._function is None or record["event"] not in LOGGED:
            return
        try:
            self._function(logged(record), record["samples"])
        except Exception:  # the user's own code may raise any, and none may end the run
            self._function = None
            logger.warning("log= raised an error, so it is not called again; the run goes on without", exc_info=True)

    def __reduce__(self) -> Any:
        return LogHook, (None,)


def logged(record: Mapping[str, Any]) -> dict[str, float | str]:
    """The values of a record for `log=`: texts, and finite numbers as floats. Leaves out unknown ones."""
    left_out = ("samples", *(NOT_OF_A_MEASUREMENT if record["event"] == "measurement" else ()))
    values: dict[str, float | str] = {}
    for name, value in record.items():
        if name in left_out:
            continue
        if isinstance(value, str):
            values[name] = value
        elif isinstance(value, Real) and math.isfinite(value):
            values[name] = float(value)
    return values
