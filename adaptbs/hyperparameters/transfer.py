"""What each of an optimizer's hyperparameters becomes at k times the base batch. docs/transfer.md has the table.

Everything here is a factor, or for a decay a power, and exactly 1 at k = 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..types import LRRule

if TYPE_CHECKING:
    from torch.optim import Optimizer

log = logging.getLogger(__name__)

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
LR = frozenset({"lr"})


def following(transfer: Collection[str] | None, lr_scaling: str | LRRule) -> frozenset[str]:
    """Which hyperparameters follow the batch, for `transfer=`.

    None is all of them, and the learning rate alone where `lr_scaling=` was chosen: who says how the learning rate is
    to move gets that and no more.

    Raises:
        TypeError: not a collection of names.
        ValueError: a name that is none, or one argument that contradicts the other.
    """
    if transfer is None:
        return frozenset(HYPERPARAMETERS) if lr_scaling == "auto" else LR
    if isinstance(transfer, str) or not isinstance(transfer, Collection):
        raise TypeError(f"transfer={transfer!r}: it must be a collection of names, such as ('lr', 'betas')")
    for name in transfer:
        if name not in HYPERPARAMETERS:
            raise ValueError(f"transfer={transfer!r}: {name!r} is none of {', '.join(map(repr, HYPERPARAMETERS))}")
    if "lr" not in transfer and lr_scaling not in ("auto", "none"):
        raise ValueError(
            f"transfer={transfer!r} leaves the learning rate as it is, lr_scaling={lr_scaling!r} does not: "
            "add 'lr' to transfer=, or leave lr_scaling= out"
        )
    return frozenset(transfer)


@dataclass(frozen=True, slots=True)
class OptimizerTraits:
    """What an optimizer does with its hyperparameters, as far as that decides what they become.

    Attributes:
        first: beta1 (fastai: mom) is the decay of an average of the gradient within the quotient, as Adam's.
        second: beta2 (alpha, sqr_mom) is the decay of an average of its square.
        eps: is added to the size of a gradient.
        debiases_first, debiases_second: divides that average by 1 - beta^step.
        decoupled: the step multiplies the weights by 1 - lr wd, for groups that do not say it themselves.
        adaptive: divides its step by the gradient's own size, as Adam does and SGD does not.
        known: whether any of this was looked up; nothing but the learning rate transfers otherwise.
    """

    first: bool = False
    second: bool = False
    eps: bool = False
    debiases_first: bool = False
    debiases_second: bool = False
    decoupled: bool = False
    adaptive: bool = True
    known: bool = True

    @property
    def debiases(self) -> bool:
        """Whether a change of the betas asks for `bias_correction`."""
        return self.debiases_first or self.debiases_second


# SGD, and optimizers whose other hyperparameters mean the same at any batch, or nothing that is known to transfer.
LR_ONLY = OptimizerTraits()
ADAM = OptimizerTraits(first=True, second=True, eps=True, debiases_first=True, debiases_second=True)
# NAdam divides its first average by the product of the decays it has really used.
NADAM = replace(ADAM, debiases_first=False)
# RAdam reads 2/(1 - beta2) as a number of steps, and below 5 it stops dividing by the gradient's size: at beta2^k it
# would turn into SGD with momentum, at Adam's learning rate.
RADAM = replace(ADAM, second=False, debiases_second=False)
# Adamax keeps a maximum, which starts with all its mass.
ADAMAX = replace(ADAM, debiases_second=False)
# LAMB divides its step by the step's own size, and so by whatever the bias correction got wrong.
LAMB = replace(ADAM, debiases_first=False, debiases_second=False)
RMSPROP = OptimizerTraits(second=True, eps=True)

# By the name of the class in torch.optim, its own or inherited from.
_TRAITS = {
    "SGD": LR_ONLY, "ASGD": LR_ONLY,
    "AdamW": replace(ADAM, decoupled=True), "Adam": ADAM, "NAdam": NADAM, "RAdam": RADAM, "Adamax": ADAMAX,
    "RMSprop": RMSPROP,
    "Adagrad": LR_ONLY, "Adadelta": LR_ONLY, "Rprop": LR_ONLY, "SparseAdam": LR_ONLY,
    "Adafactor": OptimizerTraits(decoupled=True), "Muon": OptimizerTraits(decoupled=True),
}  # fmt: skip


def traits_of(optimizer: Optimizer) -> OptimizerTraits:
    """The traits of a torch optimizer."""
    names = [cls.__name__ for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.optim")]
    known = next((_TRAITS[name] for name in names if name in _TRAITS), OptimizerTraits(known=False))
    return replace(known, adaptive=_is_adaptive(type(optimizer).__name__.lower()))


def _is_adaptive(name: str) -> bool:
    """Whether an optimizer of this name divides its step by the gradient's own size.

    Any optimizer that is not plain SGD is taken to, and that is logged where its name does not tell: sqrt(k) is the
    smaller step, so the safer mistake.
    """
    if name in ("sgd", "asgd"):
        return False
    if not any(word in name for word in ("adam", "rmsprop", "adagrad", "adadelta", "adafactor", "lamb", "lion")):
        log.info("optimizer %s is not known: its learning rate is scaled by sqrt(k); lr_scaling= changes that", name)
    return True


class Factors(NamedTuple):
    """What one group's hyperparameters are multiplied by, or raised to (`first`, `second`)."""

    lr: float
    first: float
    second: float
    eps: float
    weight_decay: float


def powers(k: float) -> tuple[float, float]:
    """What beta1 and beta2 are raised to at k: sqrt(k) and k.

    beta^k keeps the samples that an average reaches back over. So it is for beta2. For beta1 it would take away the
    momentum that keeps Adam stable: the sharpest curvature it bears is 2 (1 + beta1)/((1 - beta1) lr) in its metric
    (Cohen et al. 2022, arXiv:2207.14484), which falls by 7.6 from beta1 = .9 to .9^8, while the learning rate rises.
    Half of the way, in the logarithm, is what neither a network of convolutions nor a table of embeddings suffers from
    (docs/transfer.md).
    """
    return math.sqrt(k), k


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
    """The factors at k (Malladi et al. 2022, arXiv:2205.10287, for Adam and RMSprop; see docs/transfer.md).

    Args:
        traits: what the optimizer does with its hyperparameters.
        following: names out of HYPERPARAMETERS.
        k: batch size / base batch size.
        lr_factor: of the learning rate, by its rule; 1 where "lr" does not follow.
        decoupled: whether the step multiplies this group's weight decay by its learning rate.
        raised: the powers of the betas, where they are at hand.
        corrected: what `bias_correction.correction` gives for the learning rate and eps.
    """
    first, second = raised or powers(k if "betas" in following else 1.0)
    lr = lr_factor * corrected[0]
    # lr wd, what a step takes off the weights, is to grow by k, and not to notice the bias correction.
    decay = k if "weight_decay" in following else lr_factor
    return Factors(
        lr=lr,
        first=first if traits.first else 1.0,
        second=second if traits.second else 1.0,
        eps=corrected[1] / math.sqrt(k) if traits.eps and "eps" in following else corrected[1],
        weight_decay=decay / lr if decoupled else 1.0,
    )


def changed_group(group: Mapping[str, Any], by: Factors) -> dict[str, Any]:
    """Those of a group's hyperparameters that change, in torch's names or fastai's; floats or tensors, as they were."""
    new = {}
    for name, factor in (("lr", by.lr), ("eps", by.eps), ("weight_decay", by.weight_decay), ("wd", by.weight_decay)):
        if factor != 1 and name in group:
            new[name] = group[name] * factor
    for name, power in (("mom", by.first), ("sqr_mom", by.second), ("alpha", by.second)):
        if power != 1 and name in group:
            new[name] = group[name] ** power
    if "betas" in group and (by.first != 1 or by.second != 1):
        new["betas"] = (group["betas"][0] ** by.first, group["betas"][1] ** by.second)
    return new
