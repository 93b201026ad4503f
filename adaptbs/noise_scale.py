"""B_simple from many measurements: pool first, divide once, and say how sure that is. No autograd here."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, stack

from .types import NoiseScale, SquaredNorms

log = logging.getLogger(__name__)

ONE_SIGMA = math.erf(1 / math.sqrt(2))  # .683: the share of a normal distribution within one sigma
MEMORY = 0.05  # share of the run after which a measurement's weight has fallen to 1/e
FORGET = 5  # a measurement older than this many MEMORY is dropped,
FULL = 16  # but not the latest few, which in a short run reach further back: fewer resolve nothing
ROUNDING = 1e-6  # relative; two limits that differ by less do not


def estimate(
    norms: Sequence[SquaredNorms], weights: Sequence[float] | None = None, confidence: float = 0.9
) -> NoiseScale:
    """Pool measurements into one noise scale with Fieller's interval.

    Numerators and denominators are averaged before the one division: a mean of ratios is biased without limit when
    |G|^2 is near zero, and so is any estimate that clamps |G|^2 measurement by measurement.

    Args:
        norms: measurements, finite numbers.
        weights: their weights, positive; equal if None.
        confidence: of the interval [low, high], between 0 and 1.

    Source: McCandlish et al. 2018, appendix A.1, arXiv:1812.06162; Fieller 1954, for the ratio of two means.
    """
    if not norms:
        raise ValueError("norms is empty: a noise scale needs at least one measurement")
    x = np.array([[float(n.trace), float(n.grad_sq)] for n in norms])
    w = np.ones(len(norms)) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    trace, grad_sq = map(float, w @ x)
    effective = 1 / (w**2).sum()  # as many equally weighted measurements would know as much
    if effective < 1.5:
        low, high, cautious = 0.0, math.inf, 0.0
    else:
        residuals = (x - [trace, grad_sq]) * w[:, None]
        covariance = residuals.T @ residuals * effective / (effective - 1)  # of the two means
        low, high = fieller(trace, grad_sq, covariance, student_t(confidence, effective - 1))
        cautious, _ = fieller(trace, grad_sq, covariance, student_t(ONE_SIGMA, effective - 1))
    return NoiseScale(grad_sq, trace, low, high, cautious, len(norms))


def fieller(trace: float, grad_sq: float, covariance: np.ndarray, t: float) -> tuple[float, float]:
    """All ratios phi >= 0 for which trace - phi grad_sq is within t standard errors of zero.

    That is a phi^2 - 2 h phi + c <= 0. Where grad_sq is not significant (a <= 0) the set has no upper end, and "at
    least low" is all that can be said. Where grad_sq is significantly negative, no phi >= 0 fits: something is wrong
    with the measurements (weights that moved, a loss that couples samples), so nothing is claimed: (0, inf).

    Args:
        trace, grad_sq: the two means.
        covariance: of the two means, 2 x 2.
        t: quantile.

    Source: Fieller 1954, J. R. Statist. Soc. B 16, 175.
    """
    (var_trace, cov), (_, var_grad_sq) = np.asarray(covariance).tolist()
    a = grad_sq**2 - t**2 * var_grad_sq
    h = trace * grad_sq - t**2 * cov
    c = trace**2 - t**2 * var_trace
    resolved = a > 0
    if trace <= 0 or (resolved and grad_sq < 0):
        return 0.0, math.inf
    root = math.sqrt(max(h**2 - a * c, 0.0))
    # c <= 0: trace itself is within noise of zero, so phi = 0 is not excluded. (c / (h + root) is the lower root,
    # written so that it stays exact as a goes through zero, where the plain formula divides by it.)
    low = c / (h + root) if c > 0 and h + root > 0 else 0.0
    high = (h + root) / a if resolved else math.inf
    return low, high


def drifts(norms: Sequence[SquaredNorms], confidence: float) -> bool:
    """Whether the intervals of the older and the newer half of these measurements have no noise scale in common.

    Then the noise scale moved by more than noise explains, and their pooled estimate is one of neither.
    """
    middle = len(norms) // 2
    if middle < FULL // 2:
        return False
    older, newer = estimate(norms[:middle], None, confidence), estimate(norms[middle:], None, confidence)
    return older.high < (1 - ROUNDING) * newer.low or newer.high < (1 - ROUNDING) * older.low


def student_t(confidence: float, degrees: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # here, because importing adaptbs should not cost a user scipy's import

    return float(stdtrit(degrees, (1 + confidence) / 2))


class Window:
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
        """How many recent measurements were not finite."""
        return len(self._skipped)

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
        finite = [(s, n) for s, n in read if _is_finite(n)]
        self._skipped += [s for s, n in read if not _is_finite(n)]
        if self._skipped and not self._warned:
            self._warned = True
            log.warning(
                "a gradient was not finite (nan or inf): such batches are left out of the noise scale. That is usual "
                "now and then in float16, and where no target of a batch counts; otherwise, or if the loss is nan, "
                "lower the learning rate. This is said once."
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
        while (drifting := drifts([n for _, n in self._entries], confidence)) and len(self._entries) >= 2 * FULL:
            del self._entries[: len(self._entries) // 2]  # the older half is about another noise scale
        self._skipped = [s for s in self._skipped if s >= self._entries[0][0]]
        fade = max(self._fade, (newest - self._entries[-FULL:][0][0]) / 2)
        weights = [n.large_size * math.exp((s - newest) / fade) for s, n in self._entries]
        pooled = estimate([n for _, n in self._entries], weights, confidence)
        return replace(pooled, skipped=len(self._skipped), drifting=drifting)

    def state_dict(self) -> dict[str, Any]:
        self.read()
        rows = [[s, n.small_size, n.small, n.large_size, n.large] for s, n in self._entries]
        return {"entries": rows, "skipped": list(self._skipped), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._entries = [(s, SquaredNorms(b, small, B, large)) for s, b, small, B, large in state["entries"]]
        self._unread, self._skipped, self._warned = [], list(state["skipped"]), state["warned"]
        self._estimates = {}


def to_floats(norms: Sequence[SquaredNorms]) -> list[SquaredNorms]:
    """The same measurements as Python floats, read from the device together."""
    scalars = [v for n in norms for v in (n.small, n.large)]
    tensors = [v.detach().double() for v in scalars if isinstance(v, Tensor)]
    read = iter(stack(tensors).tolist() if tensors else [])
    values = iter([next(read) if isinstance(v, Tensor) else float(v) for v in scalars])
    return [replace(n, small=next(values), large=next(values)) for n in norms]


def _is_finite(norms: SquaredNorms) -> bool:
    return math.isfinite(float(norms.small)) and math.isfinite(float(norms.large))
