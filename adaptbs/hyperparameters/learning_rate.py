"""Learning-rate rules: (k, noise scale) -> factor of the learning rate, with k = batch size / base batch size.

Every rule gives exactly 1 at k = 1, so a run whose batch never changes trains the same to the bit.
"""

from __future__ import annotations

import math
from numbers import Real

from ..types import ENOUGH, LRRule, NoiseScale

# SGD's learning rate is raised to at most this many times its schedule's largest. The longest stable step does not grow
# with the batch, and the schedule says what the model bears. Once it has come down there is room for the factor.
LONGEST = 2
# From one step to the next the factor rises by this at most, so it doubles in 35 steps. A model bears a rate that it is
# led up to. Where the batch doubled, a sudden one made a residual net diverge.
RISE = 1.02


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


def saturating(base_batch_size: int, critical: float, power: float) -> LRRule:
    """((1 + phi/B0)/(1 + phi/B))^power, phi being the critical batch: about k^power while noise dominates, less beyond.

    The longest stable step does not grow with the batch, so past the critical batch phi the factor k^power would exceed
    it. Within the brackets is AdaScale's gain (Johnson et al. 2020, arXiv:2007.05105). While nothing is known of phi,
    noise is assumed to dominate, and the factor is k^power.

    Args:
        base_batch_size: B0, samples.
        critical: phi over B_simple, as `NoiseScale.believed` has it.
        power: of the factor: 1 for SGD, 1/2 for Adam and its kin, which already divide by the noise.
    """

    def rule(k: float, noise_scale: NoiseScale | None) -> float:
        if noise_scale is None or noise_scale.measurements < ENOUGH or not noise_scale.believed:
            return math.pow(k, power)
        phi = critical * noise_scale.believed
        return math.pow((1 + phi / base_batch_size) / (1 + phi / (k * base_batch_size)), power)

    return rule


LR_SCALINGS = ("auto", "linear", "sqrt", "gain", "none")


def lr_rule(lr_scaling: str | LRRule, *, adaptive: bool, base_batch_size: int, critical: float = 1.0) -> LRRule:
    """The rule for `lr_scaling=`.

    Args:
        lr_scaling: the name of a rule, or the user's function. "auto" is `saturating`, by its square root for an
            adaptive optimizer.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
        base_batch_size: B0, samples.
        critical: the critical batch over B_simple, for `saturating`.
    """
    if callable(lr_scaling):
        return _checked(lr_scaling)
    if lr_scaling == "auto":
        return saturating(base_batch_size, critical, 0.5 if adaptive else 1.0)
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
