"""Sets the hyperparameters to the batch inside the optimizer's step, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer

from ..types import Scale
from .scaler import HyperparameterScaler
from .transfer import LR, traits_of

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
        is_scaled: whether the hyperparameters are changed at the moment.
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
        self.scaler = HyperparameterScaler.beside(optimizer, traits_of, following)
        self._unscaled: list[dict[str, Any]] = []
        self.is_scaled = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self.restore),
        ]

    # These run at every step, with the processor's caches full of the model's. The less they touch, the better: no
    # comprehension, which is a call of its own before Python 3.12.

    def _before(self, *_: Any) -> None:
        if self.is_scaled:
            self.restore()
        k, lr_factor = self._scale()
        if k != 1 or lr_factor != 1 or not self.scaler.idle:
            groups = self._optimizer.param_groups
            new = self.scaler.prepare_step(groups, self._following, k=k, lr_factor=lr_factor)
            self._unscaled = unscaled = []
            for group, values in zip(groups, new, strict=True):
                found = {}
                for name, value in values.items():
                    found[name] = group[name]
                    group[name] = value
                unscaled.append(found)
            self.is_scaled = True

    def restore(self, *_: Any) -> None:
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
