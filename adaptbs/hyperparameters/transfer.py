"""How an optimizer's hyperparameters change at k times the base batch. docs/transfer.md has the table.

A hyperparameter is multiplied by a factor, and a decay such as beta1 is raised to a power. Both are exactly 1 at k = 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..types import LRRule
from .traits import OptimizerTraits

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
LR = frozenset({"lr"})

# What the hyperparameters are called: by torch, by fastai, and by packages with one name for each beta.
DECAYS = ("weight_decay", "wd")
FIRST = ("mom", "beta1", "momentum")
SECOND = ("sqr_mom", "beta2", "alpha")
NUMBER = (float, int, np.number, Tensor)  # numbers.Real would be asked by calls in Python, at every step


def following(transfer: Collection[str] | None, lr_scaling: str | LRRule) -> frozenset[str]:
    """The names of the hyperparameters that follow the batch, for `transfer=`.

    None stands for all of them. If the user chose `lr_scaling=`, None stands for the learning rate alone, because
    choosing its rule asks for nothing else to change.

    Raises:
        TypeError: `transfer` is not a collection of names.
        ValueError: `transfer` has an unknown name, or contradicts `lr_scaling`.
    """
    if transfer is None:
        return frozenset(HYPERPARAMETERS) if lr_scaling == "auto" else LR
    if isinstance(transfer, str) or not isinstance(transfer, Collection):
        raise TypeError(f"transfer={transfer!r}: it must be a collection of names, such as ('lr', 'betas'), or None")
    for name in transfer:
        if name not in HYPERPARAMETERS:
            raise ValueError(f"transfer={transfer!r}: {name!r} is not one of {', '.join(map(repr, HYPERPARAMETERS))}")
    if "lr" not in transfer and lr_scaling not in ("auto", "none"):
        raise ValueError(
            f"transfer={transfer!r} keeps the learning rate, but lr_scaling={lr_scaling!r} changes it: "
            "add 'lr' to transfer=, or leave lr_scaling= out"
        )
    return frozenset(transfer)


class Factors(NamedTuple):
    """The factors of one group's hyperparameters. `first` and `second` are powers to which its betas are raised."""

    lr: float
    first: float
    second: float
    eps: float
    weight_decay: float


def powers(k: float) -> tuple[float, float]:
    """The powers to which beta1 and beta2 are raised at k: k^(1/4) and k.

    With beta^k an average reaches back over the same number of samples as before. That is right for beta2. For beta1 it
    would take away the momentum that keeps Adam stable. The sharpest curvature that Adam bears, in its metric, is
    2 (1 + beta1)/((1 - beta1) lr) (Cohen et al. 2022, arXiv:2207.14484). It falls by a factor of 7.6 from beta1 = .9 to
    .9^8, while the learning rate rises and the denominator falls. With sqrt(k) a long run became unstable now and then
    when the batch had doubled. k^(1/4) is a quarter of the way in the logarithm (docs/transfer.md).
    """
    return math.sqrt(math.sqrt(k)), k


def factors(
    traits: OptimizerTraits,
    following: Collection[str],
    *,
    k: float,
    lr_factor: float,
    decoupled: bool,
    raised: tuple[float, float] | None = None,
    corrected: tuple[float, float] = (1.0, 1.0),
) -> Factors:
    """The factors at k (for Adam and RMSprop: Malladi et al. 2022, arXiv:2205.10287; see docs/transfer.md).

    Args:
        traits: how the optimizer uses its hyperparameters.
        following: the hyperparameters that follow the batch, names out of HYPERPARAMETERS.
        k: batch size / base batch size.
        lr_factor: the factor of the learning rate by its rule; 1 if "lr" does not follow.
        decoupled: True if the step multiplies this group's weight decay by its learning rate.
        raised: the powers of the betas, if they have been computed already.
        corrected: the factors of the learning rate and of eps by `bias_correction.correction`.
    """
    first, second = raised or powers(k if "betas" in following else 1.0)
    lr = lr_factor * corrected[0]
    # A decoupled step takes the share lr wd off the weights. It has to grow by k whatever the bias correction is.
    decay = k if "weight_decay" in following else lr_factor
    return Factors(
        lr=lr,
        first=first if traits.first else 1.0,
        second=second if traits.second else 1.0,
        eps=corrected[1] / math.sqrt(k) if traits.eps and "eps" in following else corrected[1],
        weight_decay=decay / lr if decoupled else 1.0,
    )


def changed_group(group: Mapping[str, Any], by: Factors) -> dict[str, Any]:
    """The new values of a group's hyperparameters, only those that change.

    Names are torch's, fastai's (mom, sqr_mom, wd) or those of packages that have one beta each (beta1, beta2). Values
    stay floats or tensors, as they were. An eps that is no number, and a third beta, stay.
    """
    lr, first, second, eps, decay = by
    new: dict[str, Any] = {}
    if lr != 1 and "lr" in group:
        new["lr"] = group["lr"] * lr
    if eps != 1 and isinstance(group.get("eps"), NUMBER):
        new["eps"] = group["eps"] * eps
    if decay != 1:
        for name in DECAYS:
            if name in group:
                new[name] = group[name] * decay
    if first != 1 or second != 1:
        if "betas" in group:
            beta1, beta2, *others = group["betas"]
            new["betas"] = (beta1**first, beta2**second, *others)
        for names, power in ((FIRST, first), (SECOND, second)):
            for beta in names:
                if power != 1 and beta in group:
                    new[beta] = group[beta] ** power
    return new


def betas_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """beta1 and beta2 of a group that has both."""
    if "betas" in group:
        beta1, beta2, *_ = group["betas"]
    elif "beta1" in group:
        beta1, beta2 = group["beta1"], group["beta2"]
    else:
        beta1, beta2 = group["mom"], group["sqr_mom"]
    return float(beta1), float(beta2)
