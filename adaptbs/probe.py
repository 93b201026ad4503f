"""The largest batch that a device's memory holds, by real training steps that leave nothing behind."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import check_size
from .memory import DeviceMemory, memory_of
from .memory_search import Trial, largest_fitting, search
from .model import (
    BatchLoss,
    Values,
    batch_bytes,
    batch_length,
    grads_left_as_found,
    has_batch_norm,
    left_as_found,
    loader_left_as_found,
    repeat_batch,
    trainable,
)
from .out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

TIMES = 2  # that each size is run: the first time optimizers make their state, and cuDNN chooses
UNKNOWN = 1 << 20  # samples, the most that is tried where the data have no length
LOOKED_AT = 8  # batches of a loader, the one with the largest samples of which is taken


@dataclass(frozen=True)
class MemoryProbe:
    """What `probe_memory` found.

    Attributes:
        batch_size: the largest that was run and stayed within the limit, samples; None where none did.
        limit: bytes that may be in use.
        trials: the sizes tried, with the bytes that each took.
    """

    batch_size: int | None
    limit: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        rows = [f"largest batch that fits: {self.batch_size} (limit {_mebibytes(self.limit)})"]
        for trial in self.trials:
            took = "ran out of memory" if trial.peak is None else _mebibytes(trial.peak)
            over = ", over the limit" if trial.peak is not None and not trial.fits else ""
            rows.append(f"{trial.batch_size:>10}  {took}{over}")
        return "\n".join(rows)


def probe_memory(
    model: nn.Module,
    loss_func: Callable[..., Tensor] | None,
    loader: Iterable[Any],
    *,
    optimizer: Optimizer | None = None,
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    max_batch_size: int | None = None,
) -> MemoryProbe:
    """Find the largest batch that the model's device holds in training, by running it.

    A few sizes are tried, each twice: forward, backward, the optimizer's step. Of the loader's first batches the one
    with the largest samples is repeated to the size. Parameters, buffers, gradients, optimizer, random states and the
    peak statistics are left as they were, also after an exception; a copy of the first and the optimizer's state is
    kept in the host's memory meanwhile.

    Args:
        model: to be trained, in the mode that it is in.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`; None if `batch_loss`.
        loader: of batches; the first ones are looked at. Its batch size is the first to be tried.
        optimizer: that will train; its step's memory counts. None: forward and backward only.
        batch_loss: called as `batch_loss(model, batch)`, for any other layout; instead of `loss_func`.
        autocast: makes the context of the forward pass.
        max_batch_size: not to be exceeded, samples; where None the dataset's length, if there is one.

    Raises:
        ValueError, TypeError: for arguments that cannot be, a loader without batches, and a device whose memory cannot
            be asked.
    """
    loss = BatchLoss(loss_func, batch_loss, autocast)
    devices = {p.device for p in model.parameters()}
    memory = memory_of(devices)
    if memory is None:
        raise ValueError(f"the memory of {', '.join(map(str, devices)) or 'no device'} cannot be asked")
    if max_batch_size is not None:
        check_size("max_batch_size", max_batch_size)
    with loader_left_as_found(loader), left_as_found(model):
        looked_at = list(islice(loader, LOOKED_AT))
    if not looked_at:
        raise ValueError("the loader gave no batch to try")
    dataset: Any = getattr(loader, "dataset", None)
    most = max_batch_size or (len(dataset) if hasattr(dataset, "__len__") else UNKNOWN)
    return probe_batches(model, loss, looked_at, memory, most=most, optimizer=optimizer)


def probe_batches(
    model: nn.Module, loss: BatchLoss, looked_at: list[Any], memory: DeviceMemory, *, most: int, optimizer: Any = None
) -> MemoryProbe:
    """`probe_memory` on batches at hand; `optimizer` is anything with step and `.state`, such as fastai's."""
    batch = max(looked_at, key=_bytes_of_a_sample)
    start = min(batch_length(looked_at[0]), most)
    trials = search(
        lambda size: try_size(model, loss, batch, size, memory, optimizer=optimizer),
        start, most, least=2 if has_batch_norm(model) else 1, careful=memory.careful,
    )  # fmt: skip
    return MemoryProbe(largest_fitting(trials), trials[-1].limit, tuple(trials))


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
    values = Values(parameters, optimizer) if optimizer is not None else None
    twin = copy.copy(optimizer) if isinstance(optimizer, Optimizer) else optimizer  # (whose hooks stay behind)
    peak: int | None = None
    with grads_left_as_found(parameters), left_as_found(model):
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


class GrowthTrial:
    """Tries a size between two steps of a training run, by forward and backward passes on a batch of it.

    Args:
        model: being trained.
        loss: of a batch.
        memory: of the device; None where it is not asked.
        measures: whether measuring is part of training, which holds another gradient.

    Attributes:
        batch: of the run, the latest.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, memory: DeviceMemory | None, *, measures: bool) -> None:
        self._model, self._loss, self._memory, self._measures = model, loss, memory, measures
        self.batch: Any = None

    def __call__(self, size: int) -> Trial:
        assert self._memory is not None
        more = bytes_of(trainable(self._model)) if self._measures else 0
        return try_size(self._model, self._loss, self.batch, size, self._memory, more=more)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What these take."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _bytes_of_a_sample(batch: Any) -> float:
    return batch_bytes(batch) / batch_length(batch)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
