"""Covariances of pooled measurements that do not take them for independent: what they would do to the interval.

Not part of the package: `epoch_average.py` and `coverage.py` try them beside `adaptbs.noise_scale.estimate`, which
takes measurements as independent, to find out whether moving weights ask for more.
"""

from __future__ import annotations

import numpy as np

from adaptbs.noise_scale.b_simple import fieller, student_t

KINDS = ("independent", "Newey-West", "batch means")


def interval(x: np.ndarray, w: np.ndarray, kind: str, confidence: float = 0.9) -> tuple[float, float]:
    """Fieller's interval for the ratio of the weighted means of x[:, 0] = trace and x[:, 1] = grad_sq, (n, 2)."""
    w = w / w.sum()
    effective = 1 / (w**2).sum()
    mean = w @ x
    u = w[:, None] * (x - mean)
    covariance, effective = {"independent": independent, "Newey-West": newey_west, "batch means": batch_means}[kind](
        u, w, effective
    )
    return fieller(*map(float, mean), covariance, student_t(confidence, effective - 1))


def independent(u: np.ndarray, w: np.ndarray, effective: float) -> tuple[np.ndarray, float]:
    """As `adaptbs.noise_scale.estimate` has it."""
    return u.T @ u * effective / (effective - 1), effective


def newey_west(u: np.ndarray, w: np.ndarray, effective: float) -> tuple[np.ndarray, float]:
    """Bartlett's weights up to lag n^(1/3), nowhere below the independent one (Newey & West 1987, Econometrica 55).

    "Nowhere": for no combination trace - phi grad_sq; directions in which lags would lower the variance are left out.
    """
    plain, _ = independent(u, w, effective)
    lags = int(effective ** (1 / 3))
    crossed = np.zeros((2, 2))
    for lag in range(1, lags + 1):
        c = u[lag:].T @ u[:-lag]
        crossed += (1 - lag / (lags + 1)) * (c + c.T)
    root = np.linalg.cholesky(plain)
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ crossed @ inverse.T * effective / (effective - 1))
    added = root @ vectors @ np.diag(values.clip(min=0)) @ vectors.T @ root.T
    return plain + added, effective


def batch_means(u: np.ndarray, w: np.ndarray, effective: float) -> tuple[np.ndarray, float]:
    """From sums over about sqrt(n) consecutive runs of measurements, which are nearly independent of each other."""
    groups = np.array_split(np.arange(len(u)), max(4, round(len(u) ** 0.5)))
    sums = np.array([u[g].sum(0) for g in groups])
    effective = 1 / sum(w[g].sum() ** 2 for g in groups)
    return sums.T @ sums * effective / (effective - 1), effective
