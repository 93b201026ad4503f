"""The recent measurements of a run, and the noise scale that they come to."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..types import NoiseScale, SquaredNorms
from .b_simple import pool, to_floats, traces_and_squares

log = logging.getLogger(__name__)

MEMORY = 0.05  # share of the run after which a measurement's weight has fallen to 1/e
FORGET = 5  # a measurement older than this many MEMORY is dropped,
ROUNDING = 1e-6  # relative; limits that are closer than this count as equal
FULL = 16  # but not the latest few, which in a short run reach further back: fewer resolve nothing


def drifts(values: np.ndarray, confidence: float) -> bool:
    """True if the intervals of the older and the newer half of measurements have no noise scale in common.

    Then the noise scale moved by more than noise explains, and their pooled estimate is one of neither.

    Args:
        values: their `traces_and_squares`.
        confidence: confidence of the two intervals.
    """
    middle = len(values) // 2
    if middle < FULL // 2:
        return False
    older, newer = pool(values[:middle], None, confidence), pool(values[middle:], None, confidence)
    return older.high < (1 - ROUNDING) * newer.low or newer.high < (1 - ROUNDING) * older.low


class MeasurementWindow:
    """The recent measurements of a run, weighted by batch size and by how long ago they were made.

    Numbers are left on the device until `estimate` is asked for: one synchronisation a decision, none a step.

    Args:
        run_samples: length of the run, samples; memory fades over a share of it.
        warns: whether to log a warning, once, when a measurement is not finite.
    """

    def __init__(self, run_samples: int, *, warns: bool = True) -> None:
        self._fade = MEMORY * run_samples
        self._entries: list[tuple[int, SquaredNorms]] = []
        self._unread: list[tuple[int, SquaredNorms]] = []
        self._skipped: list[int] = []  # samples seen at recent measurements that were not finite
        self._warned = not warns
        self._estimates: dict[float, NoiseScale | None] = {}  # by confidence, as of the latest measurement

    @property
    def skipped(self) -> int:
        """The number of recent measurements that were not finite."""
        return len(self._skipped)

    def plan(self, run_samples: int) -> None:
        """Let the memory fade as in a run of this length from here on, samples."""
        self._fade, self._estimates = MEMORY * run_samples, {}

    def add(self, samples: int, norms: SquaredNorms) -> None:
        """Put in a measurement made when `samples` samples had been seen."""
        self._unread.append((samples, norms))

    def read(self) -> list[tuple[int, SquaredNorms]]:
        """The measurements added since the last read, as floats; those that were not finite are dropped."""
        if not self._unread:
            return []
        self._estimates = {}
        samples = [s for s, _ in self._unread]
        read = list(zip(samples, to_floats([n for _, n in self._unread]), strict=True))
        finite = [(s, n) for s, n in read if math.isfinite(n.small) and math.isfinite(n.large)]
        self._skipped += [s for s, n in read if not (math.isfinite(n.small) and math.isfinite(n.large))]
        if self._skipped and not self._warned:
            self._warned = True
            log.warning(
                "a gradient was not finite (nan or inf), or was added to one that was never zeroed: such batches are "
                "left out of the noise scale. That is usual now and then in float16, and where no target of a batch "
                "counts; otherwise, or if the loss is nan, call zero_grad() at each step and lower the learning rate. "
                "This is said once."
            )
        self._entries += finite
        self._unread = []
        return finite

    def estimate(self, confidence: float) -> NoiseScale | None:
        """The noise scale as of the latest measurement, or None where nothing has been measured."""
        self.read()
        if confidence not in self._estimates:
            self._estimates[confidence] = self._estimate(confidence)
        return self._estimates[confidence]

    def _estimate(self, confidence: float) -> NoiseScale | None:
        if not self._entries:
            return None
        newest = self._entries[-1][0]
        recent = [entry for entry in self._entries[:-FULL] if newest - entry[0] <= FORGET * self._fade]
        self._entries = recent + self._entries[-FULL:]
        values = traces_and_squares([n for _, n in self._entries])
        while (drifting := drifts(values, confidence)) and len(values) >= 2 * FULL:
            half = len(values) // 2  # the older one is about another noise scale
            values, self._entries = values[half:], self._entries[half:]
        self._skipped = [s for s in self._skipped if s >= self._entries[0][0]]
        fade = max(self._fade, (newest - self._entries[-FULL:][0][0]) / 2)
        weights = [n.large_size * math.exp((s - newest) / fade) for s, n in self._entries]
        pooled = pool(values, weights, confidence)
        return replace(pooled, skipped=len(self._skipped), drifting=drifting)

    def state_dict(self) -> dict[str, Any]:
        self.read()
        rows = [[s, n.small_size, n.small, n.large_size, n.large] for s, n in self._entries]
        return {"entries": rows, "skipped": list(self._skipped), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._entries = [(s, SquaredNorms(b, small, B, large)) for s, b, small, B, large in state["entries"]]
        self._unread, self._skipped, self._warned = [], list(state["skipped"]), state["warned"]
        self._estimates = {}
