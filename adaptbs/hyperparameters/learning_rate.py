"""How the learning rate follows the batch size: (k, noise scale) -> factor, with k = batch size / base batch size.

Every rule gives exactly 1 at k = 1, so that a batch that never changes leaves training as it was to the bit.
"""

from __future__ import annotations

import math
from numbers import Real

from ..types import ENOUGH, LRRule, NoiseScale

SATURATION = 4  # the batch, over B_simple, at which SGD's learning rate has half of all it will have; see `saturating`


def linear(k: float, noise_scale: NoiseScale | None) -> float:
    """k: SGD, whose step averages over k times as many samples (Goyal et al. 2017, arXiv:1706.02677)."""
    return k


def sqrt(k: float, noise_scale: NoiseScale | None) -> float:
    """sqrt(k): Adam and its kin, whose step is already divided by the noise (Malladi et al. 2022, arXiv:2205.10287)."""
    return math.sqrt(k)


def none(k: float, noise_scale: NoiseScale | None) -> float:
    """1: the learning rate stays as it is."""
    return 1.0


def gain(base_batch_size: int) -> LRRule:
    """(1 + phi/B0)/(1 + phi/B), between 1 and k as noise allows (AdaScale, Johnson et al. 2020, arXiv:2007.05105).

    1 while B_simple is not known: what the estimate does not support is not taken.
    """

    def rule(k: float, noise_scale: NoiseScale | None) -> float:
        phi = noise_scale.simple if noise_scale is not None else None
        if phi is None:
            return 1.0
        return (1 + phi / base_batch_size) / (1 + phi / (k * base_batch_size))

    return rule


def saturating(base_batch_size: int) -> LRRule:
    """The gain at the critical batch, 4 B_simple: k while noise rules, less beyond it.

    SGD's longest stable step does not grow with the batch, and past the critical batch k would outrun it. It goes by
    the cautious limit: where a point estimate strays upward it has a step taken that is not to be taken back. While
    there are too few measurements noise is taken to rule.
    """

    def rule(k: float, noise_scale: NoiseScale | None) -> float:
        if noise_scale is None or noise_scale.measurements < ENOUGH:
            return k
        critical = SATURATION * noise_scale.cautious
        return (1 + critical / base_batch_size) / (1 + critical / (k * base_batch_size))

    return rule


LR_SCALINGS = ("auto", "linear", "sqrt", "gain", "none")


def lr_rule(lr_scaling: str | LRRule, *, adaptive: bool, base_batch_size: int) -> LRRule:
    """The rule for `lr_scaling=`, "auto" being sqrt for those that divide by the gradient's size, else saturating."""
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
                f"lr_scaling= returned {factor!r}: it must return what the learning rate is multiplied by, "
                "a finite number above 0"
            )
        return float(factor)

    return checked
