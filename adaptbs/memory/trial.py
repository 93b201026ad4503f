"""Runs a training step of a given size, and leaves no trace of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..model import (
    BatchLoss,
    WeightSnapshot,
    preserved,
    preserved_grads,
    repeat_batch,
    trainable,
)
from .device import DeviceMemory
from .recovery import is_out_of_memory
from .search import Trial

log = logging.getLogger(__name__)

TIMES = 2  # that each size is run: the first time optimizers make their state, and cuDNN chooses


def try_size(
    model: nn.Module,
    loss: BatchLoss,
    batch: Any,
    size: int,
    memory: DeviceMemory,
    *,
    optimizer: Any = None,
    more: int = 0,
) -> Trial:
    """Run a training step of `size` samples, twice, and leave no trace of it.

    Args:
        model: to be trained.
        loss: of a batch.
        batch: of real data, repeated to the size.
        size: samples.
        memory: of the model's device.
        optimizer: takes the step, if given; without its hooks.
        more: bytes that training needs at times on top of this, as measuring does for another gradient.
    """
    parameters = list(model.parameters())  # (optimizers step frozen ones too, where a gradient is left from before)
    rest = memory.in_use()
    values = WeightSnapshot(parameters, optimizer) if optimizer is not None else None
    twin = copy.copy(optimizer) if isinstance(optimizer, Optimizer) else optimizer  # (whose hooks stay behind)
    peak: int | None = None
    with preserved_grads(parameters), preserved(model):
        try:
            peak = _peak(model, loss, repeat_batch(batch, size), parameters, memory, twin)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("a batch of %d samples does not fit: %s", size, error)
        finally:
            if values is not None:
                values.restore()
    if peak is None:  # (outside of the except block, which keeps alive what the failed step holds)
        memory.release()
    return Trial(size, None if peak is None else peak + more, memory.limit(), rest + bytes_of(trainable(model)) + more)


def _peak(
    model: nn.Module, loss: BatchLoss, batch: Any, parameters: list[nn.Parameter], memory: DeviceMemory, twin: Any
) -> int | None:
    """The peak of forward and backward passes; None where the allocator could not do it in one go.

    The optimizer's step is only to succeed: what it takes does not grow with the batch, and would hide what does.
    """
    peaks = []
    for time in range(1, TIMES + 1):
        with memory.watched() as seen, torch.enable_grad():
            torch.autograd.backward(loss(model, batch))
        # (In the first pass the blocks kept of a smaller size may have to go, as they will in training, once.)
        if seen.thrashed and time == TIMES:
            return None
        peaks.append(seen.peak)
        if twin is not None:
            with memory.watched() as seen:
                twin.step()
        for parameter in parameters:
            parameter.grad = None
    return max(peaks)


class MemoryTrial:
    """Tries a size between two steps of a training run, by forward and backward passes on a batch of it.

    Args:
        model: being trained.
        loss: of a batch.
        memory: the device's memory.
        batch: returns the latest batch of the run.
        measures: whether measuring is part of training, which holds another gradient.
    """

    def __init__(
        self, model: nn.Module, loss: BatchLoss, memory: DeviceMemory, batch: Callable[[], Any], *, measures: bool
    ) -> None:
        self._model, self._loss, self._memory, self._batch, self._measures = model, loss, memory, batch, measures

    def __call__(self, size: int) -> Trial:
        more = bytes_of(trainable(self._model)) if self._measures else 0
        return try_size(self._model, self._loss, self._batch(), size, self._memory, more=more)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What these take."""
    return sum(t.numel() * t.element_size() for t in tensors)
