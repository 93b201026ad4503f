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
    # A partial has its function in `func`. An optimizer of another library may have something else in its place.
    names = [getattr(getattr(cb, "func", cb), "__name__", "") for cb in opt.cbs]
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
        self._groups: list[Any] = []  # that are scaled now, and what was set in them
        self._used: list[dict[str, Any]] = []
        self._first: dict[str, Any] = {}  # of the groups, in this epoch
        self.scaler = HyperparameterScaler.beside(inner, traits_by_group if wrapped else traits_of)

    def begin_epoch(self) -> None:
        """Take in the steps made so far."""
        self.scaler.count_steps(wait=True)
        self._first = next(iter(self._now))

    @property
    def rate(self) -> float:
        """The learning rate of the first group, once an epoch has begun."""
        rate: float = self._first["lr"]
        return rate

    def scale(self, by: Scale) -> None:
        """Scale the hyperparameters for the batch that is trained on next. Does nothing at k = 1."""
        k, lr_factor, longest = by
        if self.scaler.is_scaled:  # if the last batch raised an error
            self.restore()
        if k != 1 or lr_factor != 1 or not self.scaler.idle:
            self._groups = groups = list(self._now)
            self.scaler.scale(groups, self._following, k=k, lr_factor=lr_factor, longest=longest)
            self._used = list(map(dict, groups))

    @property
    def _now(self) -> Any:
        # fastai's set_hyper, its view of a torch optimizer's groups and the iterator of its list would take longer than
        # all the rest.
        return self._opt.opt.param_groups if self._wrapped else getattr(self._opt.hypers, "items", self._opt.hypers)

    def restore(self) -> None:
        """Restore the hyperparameters that `scale` found, but for those that another callback has set since.

        A learning rate that was set since is taken to be meant for the batch of this step, whose rate the callback saw.
        So one that multiplies and divides again, as for a GAN's critic, finds what it had.
        """
        if not self.scaler.is_scaled:
            return
        now = self._groups if self._groups == self._used else list(map(dict, self._groups))
        self.scaler.restore()
        if now is self._groups:
            return
        for group, used, seen in zip(self._groups, self._used, now, strict=True):
            for name, value in seen.items():
                if value is used.get(name) or value == group.get(name):
                    continue
                relative = name == "lr" and used["lr"]
                group[name] = group[name] * (value / used[name]) if relative else value
