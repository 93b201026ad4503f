"""How an optimizer's hyperparameters change at k times the base batch. docs/transfer.md has the table.

A hyperparameter is multiplied by a factor, and a decay such as beta1 is raised to a power. Both are exactly 1 at k = 1.
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


@dataclass(frozen=True, slots=True)
class OptimizerTraits:
    """How an optimizer uses its hyperparameters, as far as that decides how they change with the batch.

    Attributes:
        first: True if beta1 (fastai: mom) is the decay of an average of the gradient in the numerator, as Adam's is.
        second: True if beta2 (alpha, sqr_mom) is the decay of an average of the squared gradient.
        eps: True if eps is added to the size of a gradient.
        debiases_first, debiases_second: True if that average is divided by 1 - beta^step.
        decoupled: True if the step multiplies the weights by 1 - lr wd. A group's own setting takes precedence.
        adaptive: True if the step is divided by the gradient's own size, as in Adam and not in SGD.
        known: True if the traits were looked up. Otherwise only the learning rate follows the batch.
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
        """True if a change of the betas needs `bias_correction`."""
        return self.debiases_first or self.debiases_second


# SGD, and optimizers whose other hyperparameters mean the same at any batch, or are not known to transfer.
LR_ONLY = OptimizerTraits()
ADAM = OptimizerTraits(first=True, second=True, eps=True, debiases_first=True, debiases_second=True)
# NAdam divides its first average by the product of the decays that it really used, so it needs no correction.
NADAM = replace(ADAM, debiases_first=False)
# RAdam reads 2/(1 - beta2) as a number of steps, and below 5 it stops dividing by the gradient's size. At beta2^k it
# would turn into SGD with momentum, at Adam's learning rate.
RADAM = replace(ADAM, second=False, debiases_second=False)
# Adamax keeps a maximum in place of the second average. A maximum has no bias to correct.
ADAMAX = replace(ADAM, debiases_second=False)
# LAMB divides its step by the step's own size, which cancels any error of the bias correction.
LAMB = replace(ADAM, debiases_first=False, debiases_second=False)
RMSPROP = OptimizerTraits(second=True, eps=True)

# Keys are class names of torch.optim. A subclass has the traits of the class that it inherits from.
_TRAITS = {
    "SGD": LR_ONLY, "ASGD": LR_ONLY,
    "AdamW": replace(ADAM, decoupled=True), "Adam": ADAM, "NAdam": NADAM, "RAdam": RADAM, "Adamax": ADAMAX,
    "RMSprop": RMSPROP,
    "Adagrad": LR_ONLY, "Adadelta": LR_ONLY, "Rprop": LR_ONLY, "SparseAdam": LR_ONLY,
    "Adafactor": OptimizerTraits(decoupled=True), "Muon": OptimizerTraits(decoupled=True),
}  # fmt: skip


def traits_of(optimizer: Optimizer) -> OptimizerTraits:
    """The traits of a torch optimizer, by its class in torch.optim or the one that it inherits from."""
    names = [cls.__name__ for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.optim")]
    known = next((_TRAITS[name] for name in names if name in _TRAITS), OptimizerTraits(known=False))
    return replace(known, adaptive=_is_adaptive(type(optimizer).__name__.lower()))


def _is_adaptive(name: str) -> bool:
    """True if an optimizer of this name divides its step by the gradient's own size.

    Every optimizer but plain SGD is assumed to do so, because sqrt(k) is the smaller step and so the safer mistake. The
    assumption is logged if the name is unknown.
    """
    if name in ("sgd", "asgd"):
        return False
    if not any(word in name for word in ("adam", "rmsprop", "adagrad", "adadelta", "adafactor", "lamb", "lion")):
        log.info("optimizer %s is not known, so its learning rate is scaled by sqrt(k). lr_scaling= changes that", name)
    return True


class Factors(NamedTuple):
    """The factors of one group's hyperparameters. `first` and `second` are powers to which its betas are raised."""

    lr: float
    first: float
    second: float
    eps: float
    weight_decay: float


def powers(k: float) -> tuple[float, float]:
    """The powers to which beta1 and beta2 are raised at k: sqrt(k) and k.

    With beta^k an average reaches back over the same number of samples as before. That is right for beta2. For beta1 it
    would take away the momentum that keeps Adam stable. The sharpest curvature that Adam bears, in its metric, is
    2 (1 + beta1)/((1 - beta1) lr) (Cohen et al. 2022, arXiv:2207.14484). It falls by a factor of 7.6 from beta1 = .9 to
    .9^8, while the learning rate rises. sqrt(k) is half of the way in the logarithm. It harms neither a network of
    convolutions nor a table of embeddings (docs/transfer.md).
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

    Names are torch's or fastai's, as in the group. Values stay floats or tensors, as they were.
    """
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
