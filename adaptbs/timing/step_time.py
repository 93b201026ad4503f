"""t(B) = a + b B, the seconds of a step (a) and of each sample in it (b), fitted to the steps of a run."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

WARM_UP = 3  # first steps of a run that are not counted, because they compile, allocate and fill caches
ENOUGH = 5  # steps that a batch size needs to enter the fit
KEEP = 64  # latest steps kept per size: enough for a median, and older ones were made under another machine load
BENT = 0.1  # relative distance of a median from the line beyond which t(B) is not taken to be a line


class StepTime(NamedTuple):
    """Seconds of a step of B samples: a + b B."""

    a: float
    b: float

    def __call__(self, batch_size: float) -> float:
        return self.a + self.b * batch_size


class StepTable(NamedTuple):
    """Seconds of a step where they do not lie on a line.

    That happens where memory or a cache fills up, or where another algorithm is chosen, from some size on. Between
    measured sizes the seconds are interpolated linearly. Beyond them the line of the two nearest sizes is continued.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, batch_size: float) -> float:
        right = min(max(bisect_left(self.sizes, batch_size), 1), len(self.sizes) - 1)
        (x, y), (x1, y1) = ((self.sizes[i], self.seconds[i]) for i in (right - 1, right))
        slope = max(0.0, (y1 - y) / (x1 - x))
        # A line continued to smaller sizes may come to 0 seconds or below.
        return max(y + slope * (batch_size - x), min(self.seconds) / 2)


Time: TypeAlias = StepTime | StepTable


class StepTimes:
    """Seconds of the steps made so far, by batch size."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._skip = WARM_UP
        self._fitted: list[Time | None] = []  # the latest fit, until a step is added

    def add(self, *steps: tuple[int, float]) -> None:
        """Record steps: batch size and seconds of each.

        The first `WARM_UP` steps of a run are left out. So is the first step of each size, in which kernels are chosen
        (`torch.backends.cudnn.benchmark`), compiled or loaded for it. A step that took no time is left out as well: it
        shows only that the clock stood still, or was set back.
        """
        for batch_size, seconds in steps:
            left_out = self._skip > 0 or batch_size not in self._seconds
            self._skip = max(self._skip - 1, 0)
            kept = self._seconds[batch_size]
            if not left_out and seconds > 0:
                kept.append(seconds)
        for kept in self._seconds.values():
            del kept[:-KEEP]
        self._fitted.clear()

    def median(self, batch_size: int) -> float | None:
        """Median seconds of a step of exactly this size. None if none was made."""
        kept = self._seconds.get(batch_size)
        return statistics.median(kept) if kept else None

    def fit(self) -> Time | None:
        """t(B) as a line, or as a table if the steps lie on no line. None until two sizes were run often enough.

        The line is fitted by least squares to the median of each size, with relative errors and with a and b not
        negative. A size run fewer than `ENOUGH` times is left out. It may be the short last batch of an epoch, or a
        hiccup. If there are three sizes or more and a median is off the line by more than `BENT`, the medians become
        the table.
        """
        if not self._fitted:
            self._fitted.append(self._fit())
        return self._fitted[0]

    def _fit(self) -> Time | None:
        sizes = sorted(size for size, kept in self._seconds.items() if len(kept) >= ENOUGH)
        if len(sizes) < 2:
            return None
        medians = [statistics.median(self._seconds[size]) for size in sizes]
        line = _line(sizes, medians)
        off = max(abs(line(size) / median - 1) for size, median in zip(sizes, medians, strict=True))
        return StepTable(tuple(sizes), tuple(medians)) if len(sizes) > 2 and off > BENT else line

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": {size: list(kept) for size, kept in self._seconds.items()}, "skip": self._skip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seconds = defaultdict(list, {size: list(kept) for size, kept in state["seconds"].items()})
        self._skip = state["skip"]
        self._fitted.clear()


def _line(sizes: Sequence[int], medians: Sequence[float]) -> StepTime:
    """The line with the least squares of (a + b B)/median - 1."""
    # By hand: numpy.polyfit takes a tenth of a decision's time for what are a few sizes.
    weights = [1 / median**2 for median in medians]
    total = sum(weights)
    size, second = _mean(sizes, weights, total), _mean(medians, weights, total)
    spread = _mean([(x - size) ** 2 for x in sizes], weights, total)
    b = _mean([(x - size) * (y - second) for x, y in zip(sizes, medians, strict=True)], weights, total) / spread
    if b <= 0:
        return StepTime(statistics.fmean(medians), 0.0)
    a = second - b * size
    if a < 0:
        return StepTime(0.0, statistics.fmean(y / x for x, y in zip(sizes, medians, strict=True)))
    return StepTime(a, b)


def _mean(values: Sequence[float], weights: Sequence[float], total: float) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True)) / total
