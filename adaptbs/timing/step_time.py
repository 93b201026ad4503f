"""t(B) = a + b B: what a step costs and what each further sample adds, fitted to the steps a run has made."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import defaultdict
from typing import Any, NamedTuple, TypeAlias

import numpy as np

WARM_UP = 3  # a run's first steps compile, allocate and fill caches
ENOUGH = 5  # steps of a size without which it is not fitted
KEEP = 64  # latest steps kept of each size: enough for a median, and old ones describe another machine load
BENT = 0.1  # a median this far off the line, relative, shows that there is no line


class StepTime(NamedTuple):
    """Seconds of a step of B samples: a + b B."""

    a: float
    b: float

    def __call__(self, batch_size: float) -> float:
        return self.a + self.b * batch_size


class StepTable(NamedTuple):
    """Seconds of a step where they lie on no line: between measured sizes linear, beyond them as between the nearest.

    So it is where memory or a cache fills up, or another algorithm is chosen, from some size on.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, batch_size: float) -> float:
        right = min(max(bisect_left(self.sizes, batch_size), 1), len(self.sizes) - 1)
        (x, y), (x1, y1) = ((self.sizes[i], self.seconds[i]) for i in (right - 1, right))
        slope = max(0.0, (y1 - y) / (x1 - x))
        return max(y + slope * (batch_size - x), min(self.seconds) / 2)  # (a line falling to the left ends somewhere)


Time: TypeAlias = StepTime | StepTable


class StepTimes:
    """Seconds of the steps made so far, by batch size."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._skip = WARM_UP

    def add(self, batch_size: int, seconds: float) -> None:
        """Take note of one step; the run's first few are left out."""
        if self._skip:
            self._skip -= 1
            return
        kept = self._seconds[batch_size]
        kept.append(seconds)
        del kept[:-KEEP]

    def median(self, batch_size: int) -> float | None:
        """Median seconds of a step of exactly this size; None if none was made."""
        kept = self._seconds.get(batch_size)
        return statistics.median(kept) if kept else None

    def fit(self) -> Time | None:
        """A line by least squares on medians, relative errors, a and b not negative; None until there are two sizes.

        A size run a few times says little (an epoch's short last batch, a hiccup, the steps on which kernels are chosen
        or compiled) and is left out. Where medians of three sizes or more are off the line, they are the answer.
        """
        sizes = sorted(size for size, kept in self._seconds.items() if len(kept) >= ENOUGH)
        if len(sizes) < 2:
            return None
        medians = np.array([statistics.median(self._seconds[size]) for size in sizes])
        line = _line(sizes, medians)
        off = max(abs(line(size) / median - 1) for size, median in zip(sizes, medians, strict=True))
        return StepTable(tuple(sizes), tuple(medians.tolist())) if len(sizes) > 2 and off > BENT else line

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": {size: list(kept) for size, kept in self._seconds.items()}, "skip": self._skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds = defaultdict(list, {size: list(kept) for size, kept in state["seconds"].items()})
        self._skip = state["skip"]


def _line(sizes: list[int], medians: np.ndarray) -> StepTime:
    b, a = np.polyfit(sizes, medians, 1, w=1 / medians)
    if b <= 0:
        return StepTime(float(medians.mean()), 0.0)
    if a < 0:
        return StepTime(0.0, float((medians / sizes).mean()))
    return StepTime(float(a), float(b))
