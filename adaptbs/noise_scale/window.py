"""The recent measurements of a run, pooled into one noise scale."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..types import NoiseScale, SquaredNorms
from .b_simple import is_finite, limits, pool, to_floats

log = logging.getLogger(__name__)

MEMORY = 0.05  # share of the run after which a measurement's weight has fallen to 1/e
FORGET = 5  # a measurement older than this many MEMORY is dropped
FULL = 8  # the latest entries, which are kept at any age: in a short run fewer would resolve nothing
MOST = 256  # entries of a window; beyond it neighbours are merged, so that estimates of a long run take no longer
VALUES = slice(2, 4)  # columns of trace and grad_sq in an array of entries
ROUNDING = 1e-6  # relative; limits that are closer than this count as equal


class Entry(NamedTuple):
    """One measurement, or the weighted mean of several neighbouring ones.

    Attributes:
        samples: samples seen before the measurement.
        weight: size of the measured batch, samples.
        trace: tr(Sigma).
        grad_sq: |G|^2.
        measurements: number of measurements merged into this entry.
    """

    samples: float
    weight: float
    trace: float
    grad_sq: float
    measurements: int = 1

    def merged(self, other: Entry) -> Entry:
        """The weighted mean of two entries."""
        weight = self.weight + other.weight
        share = self.weight / weight
        means = [share * a + (1 - share) * b for a, b in zip(self[:4], other[:4], strict=True)]
        return Entry(means[0], weight, means[2], means[3], self.measurements + other.measurements)


def thinned(entries: list[Entry]) -> list[Entry]:
    """Merge neighbouring entries to about half as many if there are more than `MOST`. Keeps the latest `FULL`."""
    if len(entries) <= MOST:
        return entries
    older, latest = entries[:-FULL], entries[-FULL:]
    together = 4 * math.ceil(sum(e.measurements for e in older) / MOST)
    merged = older[:1]
    for entry in older[1:]:
        if merged[-1].measurements + entry.measurements <= together:
            merged[-1] = merged[-1].merged(entry)
        else:
            merged.append(entry)
    return merged + latest


def drifts(rows: np.ndarray, confidence: float) -> bool:
    """True if the intervals of the older and the newer half of the entries have no noise scale in common.

    Then the noise scale moved by more than noise explains, and a pooled estimate would describe neither half. Fewer
    than `FULL` entries show nothing.

    Args:
        rows: the entries, as rows of an array.
        confidence: confidence of the two intervals.
    """
    middle = len(rows) // 2
    if middle < FULL // 2:
        return False
    older_low, older_high = limits(rows[:middle, VALUES], rows[:middle, -1], confidence)
    newer_low, newer_high = limits(rows[middle:, VALUES], rows[middle:, -1], confidence)
    return older_high < (1 - ROUNDING) * newer_low or newer_high < (1 - ROUNDING) * older_low


class MeasurementWindow:
    """The recent measurements of a run, weighted by batch size and by how long ago they were made.

    Numbers stay on the device until `read` or `estimate` is called: one synchronisation a decision, none a step.

    Args:
        run_samples: length of the run, samples. A measurement's weight fades over a share of it.
        warns: True logs a warning, once, when a measurement is not finite.
    """

    def __init__(self, run_samples: int, *, warns: bool = True) -> None:
        self._fade = MEMORY * run_samples
        self._entries: list[Entry] = []
        self._unread: list[tuple[int, SquaredNorms]] = []
        self._skipped: list[int] = []  # samples seen at recent measurements that were not finite
        self._warned = not warns
        self._estimates: dict[float, NoiseScale | None] = {}  # by confidence, from the measurements read so far

    @property
    def skipped(self) -> int:
        """The number of recent measurements that were not finite."""
        return len(self._skipped)

    def plan(self, run_samples: int) -> None:
        """Change the length of the run, samples. Weights fade by the new length from here on."""
        self._fade, self._estimates = MEMORY * run_samples, {}

    def add(self, samples: int, norms: SquaredNorms) -> None:
        """Add a measurement made when `samples` samples had been seen. Reads nothing from the device."""
        self._unread.append((samples, norms))

    def read(self, *, warns: bool = True) -> list[tuple[int, SquaredNorms]]:
        """Read the measurements added since the last read. Returns the finite ones, as floats.

        Args:
            warns: False if it is known, and said elsewhere, why some are not finite.
        """
        if not self._unread:
            return []
        self._estimates = {}
        samples = [s for s, _ in self._unread]
        read = list(zip(samples, to_floats([n for _, n in self._unread]), strict=True))
        finite = [(s, n) for s, n in read if is_finite(n)]
        if len(finite) < len(read):
            self._skipped += [s for s, n in read if not is_finite(n)]
        if len(finite) < len(read) and warns and not self._warned:
            self._warned = True
            log.warning(
                "a gradient was not finite (nan or inf), or was added to one that was never zeroed: such batches are "
                "left out of the noise scale. That is usual now and then in float16, and where no target of a batch "
                "counts; otherwise, or if the loss is nan, call zero_grad() at each step and lower the learning rate. "
                "This is said once."
            )
        for seen, norms in finite:
            self._entries.append(Entry(seen, norms.large_size, float(norms.trace), float(norms.grad_sq)))
        self._unread = []
        return finite

    def estimate(self, confidence: float) -> NoiseScale | None:
        """Estimate the noise scale from all measurements so far. None if there is none."""
        self.read()
        if confidence not in self._estimates:
            self._estimates[confidence] = self._estimate(confidence)
        return self._estimates[confidence]

    def _estimate(self, confidence: float) -> NoiseScale | None:
        if not self._entries:
            return None
        # Not where they are read: a state is saved at any time, and that must not change the estimate.
        self._entries = thinned(self._entries)
        newest = self._entries[-1].samples
        recent = [entry for entry in self._entries[:-FULL] if newest - entry.samples <= FORGET * self._fade]
        self._entries = recent + self._entries[-FULL:]
        rows = np.array(self._entries, float)
        while (drifting := drifts(rows, confidence)) and len(rows) >= 2 * FULL:
            rows = rows[len(rows) // 2 :]  # the older half measured another noise scale
        self._entries = self._entries[-len(rows) :]
        if self._skipped:
            self._skipped = [s for s in self._skipped if s >= self._entries[0].samples]
        fade = max(self._fade, (newest - self._entries[-FULL:][0].samples) / 2)
        weights = rows[:, 1] * np.exp((rows[:, 0] - newest) / fade)
        pooled = pool(rows[:, VALUES], weights, confidence)
        return replace(pooled, measurements=int(rows[:, -1].sum()), skipped=len(self._skipped), drifting=drifting)

    def state_dict(self) -> dict[str, Any]:
        self.read()
        rows = [list(entry) for entry in self._entries]
        return {"entries": rows, "skipped": list(self._skipped), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._entries = [Entry(*row) for row in state["entries"]]
        self._unread, self._skipped, self._warned = [], list(state["skipped"]), state["warned"]
        self._estimates = {}
