"""Runs one part of the CUDA checks (`gpu.py`) to its end or that of its time, and keeps whatever it has found."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gpu_capacity import clean
from torch import device as Device

HARD = 1.5  # times its budget after which a part is stopped wherever it is


class LeftOut(Exception):
    """A part, or what is left of it, cannot be run here; the message says why."""


class TimeIsUp(BaseException):
    """Not an Exception, since what is being tried here survives those."""


def run_part(
    rows: Callable[[], Iterable[dict[str, Any]]],
    budget: float,
    device: Device,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The record of a part: its rows, seconds, and why there are no more of them if so.

    Args:
        rows: begins the part.
        budget: seconds after which no other row is begun.
        device: that it runs on.
        keep: called with the record after each row.
    """
    record: dict[str, Any] = {"budget_s": budget, "rows": []}
    begin = time.perf_counter()
    if budget <= 0:
        return record | {"left_out": "no time was left for it", "seconds": 0.0}
    try:
        with stopped_after(HARD * budget):
            for row in rows():
                record["rows"].append(row)
                record["seconds"] = time.perf_counter() - begin
                keep(record)
                if record["seconds"] > budget:
                    record["left_out"] = f"what comes after row {len(record['rows'])}: its {budget:.0f} s were over"
                    break
    except LeftOut as reason:
        record["left_out"] = str(reason)
    except (Exception, TimeIsUp) as error:
        record |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    record["seconds"] = time.perf_counter() - begin
    try:
        clean(device)  # (a device that has failed for good says so here, again)
    except RuntimeError as error:
        record.setdefault("error", f"{type(error).__name__}: {error}")
    return record


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in it when it takes longer; where signals cannot be had, it takes as long as it does."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeIsUp(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
