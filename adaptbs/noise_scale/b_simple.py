"""B_simple = tr(Sigma)/|G|^2 from many measurements: pool numerator and denominator, and say how sure their ratio is.

The one division is `NoiseScale.simple`; here are the two means and Fieller's interval for their ratio.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor, float32, float64, stack

from ..types import NoiseScale, SquaredNorms

log = logging.getLogger(__name__)

ONE_SIGMA = math.erf(1 / math.sqrt(2))  # .683: the share of a normal distribution within one sigma


def estimate(
    norms: Sequence[SquaredNorms], weights: Sequence[float] | None = None, confidence: float = 0.9
) -> NoiseScale:
    """Pool measurements into one noise scale with Fieller's interval.

    Numerators and denominators are averaged before the one division: a mean of ratios is biased without limit when
    |G|^2 is near zero, and so is any estimate that clamps |G|^2 measurement by measurement.

    Args:
        norms: measurements, finite numbers.
        weights: their weights, positive; equal if None.
        confidence: confidence of the interval [low, high], between 0 and 1.

    Raises:
        ValueError: if there is no measurement.

    Source: McCandlish et al. 2018, appendix A.1, arXiv:1812.06162; Fieller 1954, for the ratio of two means.
    """
    if not norms:
        raise ValueError("norms is empty: a noise scale needs at least one measurement")
    return pool(traces_and_squares(norms), weights, confidence)


def traces_and_squares(norms: Sequence[SquaredNorms]) -> np.ndarray:
    """tr(Sigma) and |G|^2 of each measurement, shape (n, 2), unbiased (McCandlish et al. 2018, eq. A.2)."""
    return np.array([(n.trace, n.grad_sq) for n in norms], float)


def pool(values: np.ndarray, weights: Sequence[float] | np.ndarray | None, confidence: float) -> NoiseScale:
    """The same as `estimate`, from the `traces_and_squares` of the measurements."""
    values, exponent = near_one(values)
    (trace, grad_sq), covariance, degrees = means(values, weights)
    if covariance is None:
        low, high, cautious = 0.0, math.inf, 0.0
    else:
        low, high = fieller(trace, grad_sq, covariance, student_t(confidence, degrees))
        cautious, _ = fieller(trace, grad_sq, covariance, student_t(ONE_SIGMA, degrees))
    grad_sq, trace = math.ldexp(grad_sq, exponent), math.ldexp(trace, exponent)
    return NoiseScale(grad_sq, trace, low, high, cautious, len(values))


def limits(values: np.ndarray, weights: Sequence[float] | np.ndarray | None, confidence: float) -> tuple[float, float]:
    """Only the interval of `estimate`, from the `traces_and_squares` of the measurements."""
    (trace, grad_sq), covariance, degrees = means(near_one(values)[0], weights)
    if covariance is None:
        return 0.0, math.inf
    return fieller(trace, grad_sq, covariance, student_t(confidence, degrees))


def near_one(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The values over 2^exponent, of which the largest is near 1, and the exponent. Ratios stay what they are.

    An interval takes fourth powers. Those of a float64 model that diverges would be beyond the numbers of a float.
    """
    exponent = int(np.frexp(np.abs(values).max())[1])
    return np.ldexp(values, -exponent), exponent


def means(
    values: np.ndarray, weights: Sequence[float] | np.ndarray | None
) -> tuple[list[float], np.ndarray | None, float]:
    """Weighted means of `traces_and_squares`, their 2 x 2 covariance (None if too few), degrees of freedom."""
    w = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    mean = (w @ values).tolist()
    effective = 1 / (w**2).sum()  # number of equally weighted measurements with the same variance of the mean
    if effective < 1.5:
        return mean, None, 0.0
    residuals = (values - mean) * w[:, None]
    return mean, residuals.T @ residuals * effective / (effective - 1), effective - 1


def fieller(trace: float, grad_sq: float, covariance: np.ndarray, t: float) -> tuple[float, float]:
    """Limits of all ratios phi >= 0 for which trace - phi grad_sq is within t standard errors of zero.

    That is a phi^2 - 2 h phi + c <= 0. Where grad_sq is not significant (a <= 0) the set has no upper end, and "at
    least low" is all that can be said. Where grad_sq is significantly negative, no phi >= 0 fits: something is wrong
    with the measurements (weights that moved, a loss that couples samples), so nothing is claimed: (0, inf).

    Args:
        trace, grad_sq: the two means.
        covariance: covariance of the two means, 2 x 2.
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
    # Where c <= 0, trace itself is within noise of zero, so phi = 0 is not excluded. c / (h + root) is the lower root,
    # written so that it stays exact as a goes through zero, where the plain formula divides by it.
    low = c / (h + root) if c > 0 and h + root > 0 else 0.0
    high = (h + root) / a if resolved else math.inf
    return low, high


@lru_cache(maxsize=64)
def student_t(confidence: float, degrees: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # late, because importing adaptbs should not cost a user SciPy's import

    return float(stdtrit(degrees, (1 + confidence) / 2))


def is_finite(norms: SquaredNorms) -> bool:
    """True if tr(Sigma) and |G|^2 of a measurement are finite. Large norms may be, and their multiples not.

    Args:
        norms: the measurement, as floats.
    """
    return math.isfinite(norms.trace) and math.isfinite(norms.grad_sq)


def to_floats(norms: Sequence[SquaredNorms]) -> list[SquaredNorms]:
    """The same measurements as Python floats, read from the device together."""
    scalars = [v for n in norms for v in (n.small, n.large)]
    tensors = [v.detach() for v in scalars if isinstance(v, Tensor)]
    wide = float32 if any(v.device.type == "mps" for v in tensors) else float64  # there is no wider one on MPS
    if len({v.dtype for v in tensors}) > 1:
        tensors = [v.to(wide) for v in tensors]
    read = iter(stack(tensors).to(wide).tolist() if tensors else [])
    values = iter([next(read) if isinstance(v, Tensor) else float(v) for v in scalars])
    return [SquaredNorms(n.small_size, next(values), n.large_size, next(values), n.views) for n in norms]
