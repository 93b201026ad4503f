"""Sets the hyperparameters to the batch inside the optimizer's step, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer

from ..types import Scale
from .lookup import traits_by_group
from .scaler import HyperparameterScaler
from .transfer import LR

_NAME = "_adaptbs_step_hook"  # beside the optimizer's state, which is what its state_dict holds


class StepHook:
    """Sets every group's hyperparameters to the batch just before a step and puts them back just after.

    So schedulers, checkpoints and logs see the hyperparameters that the user set; they never see the changed ones.

    An optimizer has at most one: a second takes the place of the first, whose factors would otherwise come on top.

    Args:
        optimizer: the optimizer whose steps to change.
        scale: asked before each step for k and the learning rate's factor; where both are 1 nothing is touched.
        following: the hyperparameters that follow the batch, out of `transfer.HYPERPARAMETERS`.

    Attributes:
        scaler: computes them, with what a checkpoint has to hold.
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
        self.scaler = HyperparameterScaler.beside(optimizer, traits_by_group)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self.scaler.restore),
        ]

    @property
    def is_scaled(self) -> bool:
        """True while the hyperparameters are changed."""
        return self.scaler.is_scaled

    def _before(self, *_: Any) -> None:
        # This runs at every step, with the processor's caches full of the model's. The less it touches, the better.
        scaler = self.scaler
        if scaler.is_scaled:
            scaler.restore()
        k, lr_factor, longest = self._scale()
        if k != 1 or lr_factor != 1 or not scaler.idle:
            scaler.scale(self._optimizer.param_groups, self._following, k=k, lr_factor=lr_factor, longest=longest)
        elif longest < math.inf:
            scaler.see_lr(self._optimizer.param_groups)

    def restore(self) -> None:
        """Put the hyperparameters back after a step that raised, where no post hook ran."""
        self.scaler.restore()

    def remove(self) -> None:
        """Leave the optimizer's steps as they were found."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        if self._optimizer.__dict__.get(_NAME) is self:
            del self._optimizer.__dict__[_NAME]
