"""Sets the hyperparameters to the batch inside the optimizer's step, and nowhere else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer

from ..types import Scale
from .lookup import traits_by_group
from .scaler import HyperparameterScaler
from .transfer import LR

_NAME = "_adaptbs_step_hook"  # beside the optimizer's state, which is what its state_dict holds


def is_followed(optimizer: Optimizer) -> bool:
    """True if the optimizer's hyperparameters follow a batch."""
    return _NAME in optimizer.__dict__


class StepHook:
    """Sets every group's hyperparameters to the batch just before a step and puts them back just after.

    So schedulers, checkpoints and logs see the hyperparameters that the user set; they never see the changed ones.

    An optimizer follows one at a time, as the factors of two would multiply: the one that took its place last.

    Args:
        optimizer: the optimizer whose steps to change.
        scale: asked before each step for k and the learning rate's factor; where both are 1 nothing is touched.
        following: the hyperparameters that follow the batch, out of `transfer.HYPERPARAMETERS`.

    Attributes:
        scaler: computes them, with what a checkpoint has to hold.
        is_followed: True while the optimizer follows this one.
    """

    is_followed = False

    def __init__(
        self,
        optimizer: Optimizer,
        scale: Callable[[], Scale],
        following: Collection[str] = LR,
    ) -> None:
        self._optimizer, self._scale, self._following = optimizer, scale, following
        self.scaler = HyperparameterScaler.beside(optimizer, traits_by_group)
        self._handles: list[Any] = []
        self._before_it: weakref.ref[StepHook] | None = None  # the one whose place it took
        self._in_use = self._removed = False
        self._on_taken: Callable[[], None] | None = None
        self._take_place()

    def on_taken(self, listener: Callable[[], None]) -> None:
        """Call this now, and again whenever the optimizer comes back to follow this hook."""
        self._on_taken = listener
        listener()

    def take(self) -> None:
        """Let the optimizer follow this hook until `leave`, whichever it followed before."""
        self._in_use = True
        if self._optimizer.__dict__.get(_NAME) is not self and not self._removed:
            self._take_place()
            if self._on_taken is not None:
                self._on_taken()

    def leave(self) -> None:
        """Give its place back to the hook that had it before, if that is still in use."""
        self._in_use, before = False, self._before_it() if self._before_it is not None else None
        if before is not None and before._in_use and self._optimizer.__dict__.get(_NAME) is self:
            before.take()

    def _take_place(self) -> None:
        optimizer = self._optimizer
        found: StepHook | None = optimizer.__dict__.get(_NAME)
        if found is not None:
            found._unhook()
            self._before_it = weakref.ref(found)
        optimizer.__dict__[_NAME], self.is_followed = self, True
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

    def restore(self) -> None:
        """Put the hyperparameters back after a step that raised, where no post hook ran."""
        self.scaler.restore()

    def remove(self) -> None:
        """Leave the optimizer's steps as they were found."""
        self._removed, self._on_taken = True, None
        self._unhook()
        if self._optimizer.__dict__.get(_NAME) is self:
            del self._optimizer.__dict__[_NAME]

    def _unhook(self) -> None:
        self.restore()
        self.is_followed = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
