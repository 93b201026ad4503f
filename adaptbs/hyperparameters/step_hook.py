"""The hyperparameters as they are inside the optimizer's step, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer

from ..types import Scale
from .scaler import HyperparameterScaler
from .transfer import LR, traits_of

_NAME = "_adaptbs_scaled_step"  # beside the optimizer's state, which is what its state_dict holds


class StepHook:
    """Sets every group's hyperparameters to the batch just before a step and puts them back just after.

    So schedulers, checkpoints and logs see the hyperparameters that the user set; they never see the changed ones.

    An optimizer has at most one: a second takes the place of the first, whose factors would otherwise come on top.

    Args:
        optimizer: whose steps to scale.
        scale: by what, asked before each step; where that is 1 everything is left untouched.
        following: which hyperparameters follow the batch, out of `transfer.HYPERPARAMETERS`.

    Attributes:
        is_scaled: whether the hyperparameters are changed at the moment.
        hyperparameters: of the optimizer, with what a checkpoint has to hold.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scale: Callable[[], Scale],
        following: Collection[str] = LR,
    ) -> None:
        earlier = optimizer.__dict__.get(_NAME)
        if earlier is not None:
            earlier.remove()
        optimizer.__dict__[_NAME] = self
        self._optimizer, self._scale, self._following = optimizer, scale, following
        self.hyperparameters = HyperparameterScaler.beside(optimizer, traits_of, following)
        self._unscaled: list[dict[str, Any]] = []
        self.is_scaled = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    # (These run at every step, with the processor's caches full of the model's: the less they touch, the better.)

    def _before(self, *_: Any) -> None:
        if self.is_scaled:
            self.restore()
        k, lr_factor = self._scale()
        if k != 1 or lr_factor != 1 or not self.hyperparameters.idle:
            groups = self._optimizer.param_groups
            new = self.hyperparameters.changed(groups, self._following, k=k, lr_factor=lr_factor)
            self._unscaled = [{name: group[name] for name in values} for group, values in zip(groups, new, strict=True)]
            for group, values in zip(groups, new, strict=True):
                group.update(values)
            self.is_scaled = True

    def _after(self, *_: Any) -> None:
        if self.is_scaled:
            self.restore()

    def restore(self) -> None:
        """Put the hyperparameters back; also after a step that raised, where no post hook ran."""
        if self.is_scaled:
            for group, values in zip(self._optimizer.param_groups, self._unscaled, strict=True):
                group.update(values)
            self.is_scaled = False

    def remove(self) -> None:
        """Leave the optimizer's steps as they were found."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        if self._optimizer.__dict__.get(_NAME) is self:
            del self._optimizer.__dict__[_NAME]
