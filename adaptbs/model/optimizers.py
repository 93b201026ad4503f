"""Copies of torch's optimizers, and the parameters that they train."""

from __future__ import annotations

import copy
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from .batch_loss import BatchLoss
from .modules import trainable
from .watched_parameters import group_sizes

T = TypeVar("T", bound=Optimizer)

# Types of the attributes that `without_hooks` copies. Larger ones would be shared: an inner optimizer, a list, what a
# scheduler has put there.
SETTINGS = (bool, int, float, str, FunctionType, type(None))


def without_hooks(optimizer: T) -> T:
    """A copy that has the optimizer's own parameter groups and state, but none of its hooks and schedulers.

    torch copies only groups and state. The steps of some classes need settings that are kept beside them.
    """
    twin = copy.copy(optimizer)
    for name, value in vars(optimizer).items():
        if isinstance(value, SETTINGS) and name != "step":  # a scheduler wraps the step
            vars(twin).setdefault(name, value)
    return twin


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters of an optimizer's groups, torch's or fastai's."""
    return [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]


class TrainedParameters:
    """Finds the parameters that a step trains, also those outside of the model, such as a loss's.

    Args:
        model: the model.
        optimizer: takes the steps.
        loss: the loss of a batch.
    """

    def __init__(self, model: nn.Module, optimizer: Any, loss: BatchLoss) -> None:
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._sizes: list[int] | None = None
        self._outside: list[Tensor] = []

    def __call__(self) -> list[Tensor]:
        """The parameters as they are now. Those outside of the model are searched for when the groups have changed."""
        sizes = group_sizes(self._optimizer)
        if sizes != self._sizes:
            found = (*self._loss.parameters(self._model), *parameters_of(self._optimizer))
            own = {id(p) for p in self._model.parameters()}
            self._sizes, self._outside = sizes, list({id(p): p for p in found if id(p) not in own}.values())
        return [*trainable(self._model), *self._outside]
