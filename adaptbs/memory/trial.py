"""Runs a training step of a given size, and leaves no trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ..model import (
    BatchLoss,
    WeightSnapshot,
    certain_repeat,
    parameters_of,
    preserved_grads,
    trainable,
    without_hooks,
)
from .device import DeviceMemory
from .recovery import is_out_of_memory
from .search import Trial

log = logging.getLogger(__name__)

TIMES = 2  # runs of each size; in the first one optimizers create their state, and cuDNN chooses its algorithms


def try_size(
    model: nn.Module,
    loss: BatchLoss,
    batch: Any,
    size: int,
    memory: DeviceMemory,
    *,
    optimizer: Any = None,
    trained: Iterable[Tensor] = (),
    more: int = 0,
    watching: Callable[[int], AbstractContextManager[None]] = lambda size: nullcontext(),
) -> Trial:
    """Run a training step of `size` samples twice, and leave no trace of it.

    Args:
        model: the model to be trained.
        loss: the loss of a batch.
        batch: a batch of real data, repeated to the size.
        size: samples.
        memory: the memory of the model's device.
        optimizer: takes the step without its hooks. None: forward and backward passes only.
        trained: parameters that the passes may reach beside the model's and the loss's.
        more: bytes that training sometimes needs on top, for example for the second gradient of a measurement.
        watching: function (size) -> context of a forward and backward pass, in which the step is measured.

    Raises:
        NotCutError: if the layout of the batch does not tell how to repeat its samples.
    """
    # Frozen ones too, since optimizers step them if an old gradient is left, and those of the loss's own.
    parameters = list({id(p): p for p in (*loss.parameters(model), *parameters_of(optimizer), *trained)}.values())
    rest = memory.in_use()
    values = WeightSnapshot(parameters, optimizer) if optimizer is not None else None
    twin = without_hooks(optimizer) if isinstance(optimizer, Optimizer) else optimizer
    peak: int | None = None
    try:
        with preserved_grads(parameters), loss.preserving(model):
            peak = _peak(model, loss, certain_repeat(batch, size), parameters, memory, twin, partial(watching, size))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.info("a batch of %d samples does not fit: %s", size, str(error))  # a kept record keeps its tensors
    finally:
        if values is not None:
            values.restore()  # once parameters that a pass has put on other memory are back on their own
    if peak is None:  # outside of the except block, which would keep the tensors of the failed step alive
        memory.release()
    return Trial(size, None if peak is None else peak + more, memory.limit(), rest + bytes_of(trainable(model)) + more)


def _peak(
    model: nn.Module,
    loss: BatchLoss,
    batch: Any,
    parameters: list[Tensor],
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
        with memory.watched() as seen, watching():
            loss.backward(model, batch)
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


class Measures(Protocol):
    """The part of the meter of a run that says how much memory measuring takes."""

    @property
    def bytes_beside_step(self) -> int:
        """Bytes that a measurement may hold beyond a step under `watching`."""
        ...

    def watching(self, size: int) -> AbstractContextManager[None]:
        """A context in which a pass of `size` samples holds the memory that it holds when it is measured."""
        ...


class MemoryTrial:
    """Tries a size between two steps of a training run, by forward and backward passes on one of the run's batches.

    It counts at least the memory that a measured step of the size holds, including the first.

    Args:
        model: the model that is being trained.
        loss: the loss of a batch.
        memory: the device's memory.
        batch: returns the latest batch of the run.
        measures: returns the meter of the run's steps, None if nothing is measured.
        optimizer: the optimizer of the run. Its parameters may lie outside of the model.
        accumulates: True if a step's later passes begin with the gradient of the earlier ones.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        memory: DeviceMemory,
        batch: Callable[[], Any],
        *,
        measures: Callable[[], Measures | None],
        optimizer: Any = None,
        accumulates: bool = False,
    ) -> None:
        self._model, self._loss, self._memory, self._batch, self._measures = model, loss, memory, batch, measures
        self._optimizer, self._accumulates = optimizer, accumulates

    def __call__(self, size: int) -> Trial:
        measures = self._measures()
        more = bytes_of(trainable(self._model)) if self._accumulates else 0
        attempt = partial(
            try_size, self._model, self._loss, self._batch(), size, self._memory, trained=parameters_of(self._optimizer)
        )
        if measures is None:
            return attempt(more=more)
        return attempt(more=more + measures.bytes_beside_step, watching=measures.watching)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that the elements of these tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors)
