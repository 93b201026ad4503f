"""How far an estimate of |G|^2 spreads at unmoved weights, and the moments of the gradients that this takes."""

from __future__ import annotations

import torch
from torch import Tensor


def second_moments(gradients: list[Tensor], size: int) -> tuple[float, float, float]:
    """tr(Sigma), tr(Sigma^2) and G' Sigma G from gradients of an even number of batches at unmoved weights.

    Differences d of disjoint pairs have mean 0 and covariance 2 Sigma/B, so E (d.d')^2 = 4 tr(Sigma^2)/B^2, and against
    a gradient g of neither pair E (d.g)^2 = 2 tr(Sigma^2)/B^2 + 2 G' Sigma G/B.
    """
    g = torch.stack(gradients).double()
    d = g[0::2] - g[1::2]
    n = len(d)
    apart = ~torch.eye(n, dtype=torch.bool)
    trace = float(d.square().sum(1).mean()) * size / 2
    square = float((d @ d.T).square()[apart].mean()) * size**2 / 4
    along = float((d @ g[0::2].T).square()[apart].mean()) * size / 2 - square / size
    return trace, square, along


def variance_law(parts: int, size: int, measurements: int, square: float, along: float) -> float:
    """Variance of the mean of so many |G|^2, each from k parts of b samples: the U-statistic's, at unmoved weights."""
    pairs = parts * (parts - 1)
    return (2 * square / (size**2 * pairs) + 4 * along / (size * parts)) / measurements
