"""Runs a training step of a given size, and leaves no trace of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..gradients import NoiseMeter
from ..model import (
    BatchLoss,
    WeightSnapshot,
    certain_repeat,
    preserved,
    preserved_grads,
    trainable,
)
from .device import DeviceMemory
from .recovery import is_out_of_memory
from .search import Trial

log = logging.getLogger(__name__)

TIMES = 2  # runs of each size: in the first one optimizers create their state, and cuDNN chooses its algorithms


def try_size(
    model: nn.Module,
    loss: BatchLoss,
    batch: Any,
    size: int,
    memory: DeviceMemory,
    *,
    optimizer: Any = None,
    more: int = 0,
    watching: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Trial:
    """Run a training step of `size` samples twice, and leave no trace of it.

    Args:
        model: the model to be trained.
        loss: the loss of a batch.
        batch: a batch of real data, repeated to the size.
        size: samples.
        memory: the memory of the model's device.
        optimizer: takes the step without its hooks. None: forward and backward passes only.
        more: bytes that training sometimes needs on top, as measuring by halves does for another gradient.
        watching: makes the context of forward and backward passes, as measuring in the step has one.

    Raises:
        NotCutError: if it is not certain what repeats a sample of the batch.
    """
    parameters = list(model.parameters())  # frozen ones too: optimizers step them if an old gradient is left
    rest = memory.in_use()
    values = WeightSnapshot(parameters, optimizer) if optimizer is not None else None
    twin = copy.copy(optimizer) if isinstance(optimizer, Optimizer) else optimizer  # a torch copy has no hooks
    peak: int | None = None
    with preserved_grads(parameters), preserved(model):
        try:
            peak = _peak(model, loss, certain_repeat(batch, size), parameters, memory, twin, watching)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("a batch of %d samples does not fit: %s", size, error)
        finally:
            if values is not None:
                values.restore()
    if peak is None:  # outside of the except block, which would keep the tensors of the failed step alive
        memory.release()
    return Trial(size, None if peak is None else peak + more, memory.limit(), rest + bytes_of(trainable(model)) + more)


def _peak(
    model: nn.Module,
    loss: BatchLoss,
    batch: Any,
    parameters: list[nn.Parameter],
    memory: DeviceMemory,
    twin: Any,
    watching: Callable[[], AbstractContextManager[None]],
) -> int | None:
    """The peak of forward and backward passes, bytes. None if memory was so full that the allocator had to retry.

    The optimizer's step only has to succeed. Its memory does not grow with the batch, and would hide the memory that
    does.
    """
    peaks = []
    for time in range(1, TIMES + 1):
        with memory.watched() as seen, torch.enable_grad(), watching():
            torch.autograd.backward(loss(model, batch))
        # In the first pass the allocator may have to free cached blocks of a smaller size, as it will once in training.
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
    """Tries a size between two steps of a training run, by forward and backward passes on one of the run's batches.

    Args:
        model: the model that is being trained.
        loss: the loss of a batch.
        memory: the device's memory.
        batch: returns the latest batch of the run.
        measures: returns how the run measures: in its steps, whose passes are then tried as they are when they are
            measured; by halves, which needs memory for another gradient; or None for not at all.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        memory: DeviceMemory,
        batch: Callable[[], Any],
        *,
        measures: Callable[[], NoiseMeter | None],
    ) -> None:
        self._model, self._loss, self._memory, self._batch, self._measures = model, loss, memory, batch, measures

    def __call__(self, size: int) -> Trial:
        meter = self._measures()
        more = bytes_of(trainable(self._model)) if meter is not None and not meter.in_step else 0
        watching = meter.watching if meter is not None and meter.in_step else nullcontext
        return try_size(self._model, self._loss, self._batch(), size, self._memory, more=more, watching=watching)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that the elements of these tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors)
