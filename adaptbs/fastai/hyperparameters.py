"""Scales a fastai optimizer's hyperparameters to the current batch, and restores them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from fastai.optimizer import OptimWrapper
from torch.optim import Optimizer

from ..hyperparameters import (
    ADAM,
    LAMB,
    LR_ONLY,
    RADAM,
    RMSPROP,
    UNKNOWN,
    HyperparameterScaler,
    OptimizerTraits,
    traits_by_group,
)
from ..hyperparameters import traits_of as traits_of_torchs
from ..types import Scale

# fastai's optimizers are all of one class. The names of the functions that they call show what they do. QHAdam mixes
# the gradient with the corrected average, so its bias correction cannot be adjusted from outside.
_TRAITS = {
    "sgd_step": LR_ONLY, "momentum_step": LR_ONLY, "larc_step": LR_ONLY, "qhadam_step": LR_ONLY,
    "adam_step": ADAM, "radam_step": RADAM, "lamb_step": LAMB, "rms_prop_step": RMSPROP,
}  # fmt: skip


def traits_of(opt: Any) -> OptimizerTraits:
    """The traits of one of fastai's own optimizers."""
    names = [getattr(cb, "func", cb).__name__ for cb in opt.cbs]  # a partial has its function in `func`
    known = next((_TRAITS[name] for name in names if name in _TRAITS), UNKNOWN)
    # The other way to decay weights is l2_reg; sqr_mom is fastai's name for the decay of Adam's squared gradient.
    adaptive = "sqr_mom" in opt.hypers[-1] or not known.known  # sqrt(k) is the smaller step and so the safer mistake
    return replace(known, decoupled="weight_decay" in names, adaptive=adaptive)


def is_adaptive(opt: Any) -> bool:
    """True if an optimizer, fastai's or torch's, divides its step by the gradient's own size."""
    inner = opt.opt if isinstance(opt, OptimWrapper) else opt
    return (traits_of_torchs(inner) if isinstance(inner, Optimizer) else traits_of(inner)).adaptive


class FastaiStepHook:
    """Scales a fastai optimizer's hyperparameters to the batch, and restores them.

    Args:
        opt: fastai's optimizer, or torch's in an OptimWrapper.
        following: names of the hyperparameters that follow the batch, from `transfer.HYPERPARAMETERS`.

    Attributes:
        scaler: computes the scaled hyperparameters, and holds their state for a checkpoint.
    """

    def __init__(self, opt: Any, following: Collection[str]) -> None:
        wrapped = isinstance(opt, OptimWrapper)
        self._opt, self._following, self._wrapped = opt, following, wrapped
        inner = opt.opt if wrapped else opt
        self.scaler = HyperparameterScaler.beside(inner, traits_by_group if wrapped else traits_of)

    def scale(self, by: Scale) -> None:
        """Scale the hyperparameters for the batch that is trained on next. Does nothing at k = 1."""
        k, lr_factor, longest = by
        if self.scaler.is_scaled:  # the last batch raised an error
            self.scaler.restore()
        if k != 1 or lr_factor != 1 or not self.scaler.idle:
            # fastai's set_hyper, and its view of a torch optimizer's groups, would take longer than all the rest.
            groups = self._opt.opt.param_groups if self._wrapped else self._opt.hypers
            self.scaler.scale(groups, self._following, k=k, lr_factor=lr_factor, longest=longest)

    def restore(self) -> None:
        """Restore the hyperparameters that `scale` found."""
        self.scaler.restore()
