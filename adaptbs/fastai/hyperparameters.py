"""Sets a fastai optimizer's hyperparameters to the current batch, from one event of a Callback to another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from fastai.optimizer import OptimWrapper
from torch.optim import Optimizer

from ..hyperparameters import ADAM, LAMB, LR_ONLY, RADAM, RMSPROP, HyperparameterScaler, OptimizerTraits
from ..hyperparameters import traits_of as traits_of_torchs
from ..types import Scale

# fastai's optimizers are all of one class: what they do is in the names of the functions that they call. QHAdam mixes
# gradient and corrected average, so that its bias correction cannot be set right from outside.
_TRAITS = {
    "sgd_step": LR_ONLY, "momentum_step": LR_ONLY, "larc_step": LR_ONLY, "qhadam_step": LR_ONLY,
    "adam_step": ADAM, "radam_step": RADAM, "lamb_step": LAMB, "rms_prop_step": RMSPROP,
}  # fmt: skip


def traits_of(opt: Any) -> OptimizerTraits:
    """The traits of one of fastai's own optimizers."""
    names = [getattr(cb, "func", cb).__name__ for cb in opt.cbs]  # func: of a partial
    known = next((_TRAITS[name] for name in names if name in _TRAITS), OptimizerTraits(known=False))
    # The other way to decay weights is l2_reg; sqr_mom is fastai's name for the decay of Adam's squared gradient.
    return replace(known, decoupled="weight_decay" in names, adaptive="sqr_mom" in opt.hypers[-1])


def is_adaptive(opt: Any) -> bool:
    """True if an optimizer, fastai's or torch's, divides its step by the gradient's own size."""
    inner = opt.opt if isinstance(opt, OptimWrapper) else opt
    return (traits_of_torchs(inner) if isinstance(inner, Optimizer) else traits_of(inner)).adaptive


class FastaiStepHook:
    """Sets a fastai optimizer's hyperparameters to the batch, and gives them back.

    Args:
        opt: fastai's, or torch's in an OptimWrapper.
        following: the hyperparameters that follow the batch, out of `transfer.HYPERPARAMETERS`.

    Attributes:
        scaler: computes them, with what a checkpoint has to hold.
    """

    def __init__(self, opt: Any, following: Collection[str]) -> None:
        wrapped = isinstance(opt, OptimWrapper)
        self._opt, self._following = opt, following
        self._unscaled: dict[str, list[Any]] = {}  # a value for each group
        self.scaler = HyperparameterScaler.beside(
            opt.opt if wrapped else opt, traits_of_torchs if wrapped else traits_of, following
        )

    def scale(self, by: Scale) -> None:
        """Set them for the batch that is about to be trained on; nothing happens at k = 1."""
        k, lr_factor = by
        if k == 1 and lr_factor == 1 and self.scaler.idle:
            return
        hypers = self._opt.hypers
        new = self.scaler.prepare_step(hypers, self._following, k=k, lr_factor=lr_factor)
        names = {name for values in new for name in values if all(name in hyper for hyper in hypers)}
        self._unscaled = {name: [hyper[name] for hyper in hypers] for name in names}
        for name, unscaled in self._unscaled.items():
            self._opt.set_hyper(name, [values.get(name, old) for values, old in zip(new, unscaled, strict=True)])

    def restore(self) -> None:
        """Give back what `scale` found."""
        for name, values in self._unscaled.items():
            self._opt.set_hyper(name, values)
        self._unscaled = {}
