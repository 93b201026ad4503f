"""A part of the GPU benchmark is a row of cells: each is run by itself, and written as soon as it is through."""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

import torch

from benchmarks.common.machine import machine

LIMIT = 8 * 60  # seconds of a part. Cells that do not fit are left to the next time the command is given.


@dataclass(frozen=True)
class Setup:
    """Where and how large.

    Attributes:
        quick: small models and few steps, to try the program on a CPU.
    """

    device: torch.device
    quick: bool

    def wait(self) -> None:
        """Wait until the device has worked through its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def give_back(self) -> None:
        """Return all memory that is not in use to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    name: str
    run: Callable[[], Any]


Part: TypeAlias = Callable[[Setup], Iterator[Cell]]


class LeftOut(Exception):
    """Why something was not run."""


class Book:
    """The results of all parts, in one JSON file that is written after each cell.

    Args:
        path: the file. What an earlier run of the command has written there is kept.
        setup: a file of another device or size is refused.
    """

    def __init__(self, path: Path, setup: Setup) -> None:
        self._path = path
        said = {"device": setup.device.type, "quick": setup.quick}
        self._all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {**said, "parts": {}}
        found = {name: self._all.get(name) for name in said}
        if found != said:
            raise SystemExit(f"--out {path}: it holds results of {found}, these would be of {said}: name another file")

    def part(self, name: str) -> dict[str, Any]:
        """A part's results so far."""
        part: dict[str, Any] = self._all["parts"].setdefault(name, {"cells": {}, "complete": False})
        return part

    def forget(self, name: str) -> None:
        """Run this part anew."""
        self._all["parts"].pop(name, None)

    def write(self) -> None:
        self._all["machine"] = machine()
        self._all["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.with_suffix(".writing")  # so that a run that is cut off leaves a whole file
        whole.write_text(json.dumps(self._all, indent=2) + "\n")
        whole.replace(self._path)


def attempt(cell: Cell) -> dict[str, Any]:
    """What came of a cell, and how long it took."""
    begin = time.perf_counter()
    try:
        came: dict[str, Any] = {"result": cell.run()}
    except LeftOut as reason:
        came = {"left_out": str(reason)}
    except Exception as error:  # recorded, because the other cells are to be run all the same
        came = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**came, "seconds": time.perf_counter() - begin}


def failed(came: dict[str, Any]) -> bool:
    """True if a cell failed, or one of the tests that it ran."""
    result = came.get("result")
    return "error" in came or (isinstance(result, dict) and bool(result.get("failed")))


def run_part(name: str, part: Part, setup: Setup, book: Book, limit: float = LIMIT) -> bool:
    """Run the cells of a part that are not in the book yet, as long as there is time; True if none is left."""
    found, begin, longest = book.part(name), time.perf_counter(), -math.inf  # so that the first one is always run
    for cell in part(setup):
        came = found["cells"].get(cell.name)
        if came is not None and not failed(came):
            continue
        if time.perf_counter() - begin + longest > limit:
            book.write()
            return False
        came = found["cells"][cell.name] = attempt(cell)
        longest = max(longest, came["seconds"])
        print(f"{name} | {cell.name} | {json.dumps(came)[:300]}", flush=True)
        book.write()
        setup.give_back()
    found["complete"] = True
    book.write()
    return True
