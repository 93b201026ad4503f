"""The learning rate as it is inside the optimizer's step, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

_NAME = "_adaptbs_scaled_step"  # beside the optimizer's state, which is what its state_dict holds


class ScaledStep:
    """Multiplies every group's learning rate just before a step and puts it back just after.

    So LR schedulers, checkpoints and logs see the learning rate that the user set; they never see the factor.

    An optimizer has at most one: a second takes the place of the first, whose factor would otherwise come on top.

    Args:
        optimizer: whose steps to scale.
        factor: asked before each step; exactly 1 leaves everything untouched.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[], float]) -> None:
        earlier = optimizer.__dict__.get(_NAME)
        if earlier is not None:
            earlier.remove()
        optimizer.__dict__[_NAME] = self
        self._optimizer, self._factor = optimizer, factor
        self._unscaled: list[Any] | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    # (These run at every step, with the processor's caches full of the model's: the less they touch, the better.)

    def _before(self, *_: Any) -> None:
        if self._unscaled is not None:
            self.restore()
        factor = self._factor()
        if factor != 1:
            self._scale(factor)

    def _after(self, *_: Any) -> None:
        if self._unscaled is not None:
            self.restore()

    def _scale(self, factor: float) -> None:
        self._unscaled = [group["lr"] for group in self._optimizer.param_groups]
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def restore(self) -> None:
        """Put the learning rates back; also after a step that raised, where no post hook ran."""
        if self._unscaled is not None:
            for group, lr in zip(self._optimizer.param_groups, self._unscaled, strict=True):
                group["lr"] = lr
            self._unscaled = None

    def remove(self) -> None:
        """Leave the optimizer as it was found."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        if self._optimizer.__dict__.get(_NAME) is self:
            del self._optimizer.__dict__[_NAME]
