"""Learning-rate rules: (k, noise scale) -> factor of the learning rate, with k = batch size / base batch size.

Every rule gives exactly 1 at k = 1, so a run whose batch never changes trains the same to the bit.
"""

from __future__ import annotations

import math
from numbers import Real

from ..types import ENOUGH, LRRule, NoiseScale

SATURATION = 4  # the critical batch of `saturating` over B_simple, where SGD's learning rate reaches half of its limit


def linear(k: float, noise_scale: NoiseScale | None) -> float:
    """k, for SGD, whose step averages over k times as many samples (Goyal et al. 2017, arXiv:1706.02677)."""
    return k


def sqrt(k: float, noise_scale: NoiseScale | None) -> float:
    """sqrt(k), for Adam and its kin, which already divide by the noise (Malladi et al. 2022, arXiv:2205.10287)."""
    return math.sqrt(k)


def none(k: float, noise_scale: NoiseScale | None) -> float:
    """1. The learning rate does not follow the batch."""
    return 1.0


def gain(base_batch_size: int) -> LRRule:
    """(1 + phi/B0)/(1 + phi/B) with phi = B_simple, between 1 and k (AdaScale, Johnson et al. 2020, arXiv:2007.05105).

    The factor is 1 while B_simple is unknown, because no estimate supports a larger one.

    Args:
        base_batch_size: B0, samples.
    """

    def rule(k: float, noise_scale: NoiseScale | None) -> float:
        phi = noise_scale.simple if noise_scale is not None else None
        if phi is None:
            return 1.0
        return (1 + phi / base_batch_size) / (1 + phi / (k * base_batch_size))

    return rule


def saturating(base_batch_size: int) -> LRRule:
    """(1 + phi/B0)/(1 + phi/B) with phi = 4 B_simple: about k while noise dominates the gradient, less beyond phi.

    SGD's longest stable step does not grow with the batch, so past the critical batch phi the factor k would exceed it.
    phi is taken at the cautious limit of B_simple. A point estimate is sometimes too high, and a step that is too long
    cannot be undone. While there are too few measurements, noise is assumed to dominate, and the factor is k.

    Args:
        base_batch_size: B0, samples.
    """

    def rule(k: float, noise_scale: NoiseScale | None) -> float:
        if noise_scale is None or noise_scale.measurements < ENOUGH:
            return k
        critical = SATURATION * noise_scale.cautious
        return (1 + critical / base_batch_size) / (1 + critical / (k * base_batch_size))

    return rule


LR_SCALINGS = ("auto", "linear", "sqrt", "gain", "none")


def lr_rule(lr_scaling: str | LRRule, *, adaptive: bool, base_batch_size: int) -> LRRule:
    """The rule for `lr_scaling=`.

    Args:
        lr_scaling: the name of a rule, or the user's function. "auto" is `sqrt` for an adaptive optimizer, and
            `saturating` for any other.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
        base_batch_size: B0, samples.
    """
    if callable(lr_scaling):
        return _checked(lr_scaling)
    if lr_scaling == "auto":
        return sqrt if adaptive else saturating(base_batch_size)
    return {"linear": linear, "sqrt": sqrt, "none": none, "gain": gain(base_batch_size)}[lr_scaling]


def _checked(rule: LRRule) -> LRRule:
    def checked(k: float, noise_scale: NoiseScale | None) -> float:
        factor = rule(k, noise_scale)
        if not isinstance(factor, Real) or not 0 < factor < math.inf:
            raise ValueError(
                f"lr_scaling= returned {factor!r}: it must return the factor of the learning rate, "
                "a finite number above 0. Return 1 to keep the learning rate."
            )
        return float(factor)

    return checked
