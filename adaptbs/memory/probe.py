"""Finds the largest batch that a device's memory holds, by training steps that leave no trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..checks import (
    check_batches,
    check_model,
    check_needs_no_closure,
    check_optimizer,
    check_size,
    check_trains,
)
from ..model import (
    BatchLoss,
    WeightSnapshot,
    batch_bytes,
    batch_length,
    has_batch_norm,
    length_of,
    preserved,
    preserved_loader,
)
from .device import DeviceMemory, memory_of
from .search import Trial, largest_fitting, search
from .trial import try_size

log = logging.getLogger(__name__)

UNKNOWN = 1 << 20  # largest size tried if the data have no length, samples
LOOKED_AT = 8  # number of a loader's first batches that are read. The one with the largest samples is used.


@dataclass(frozen=True)
class MemoryProbe:
    """The result of `probe_memory`.

    Attributes:
        batch_size: the largest size that was run and stayed within the limit, samples. None if none did.
        limit: bytes that may be in use.
        trials: the sizes tried, with the bytes that each one used.
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
    """Find the largest batch that fits in the memory of the model's device during training, by running training steps.

    A few sizes are tried. Each one runs twice through forward pass, backward pass and the optimizer's step. The batch
    is the one with the largest samples among the loader's first batches, repeated to the size. Parameters, buffers,
    gradients, optimizer, random states and peak statistics are restored, also after an exception. Meanwhile a copy of
    the parameters and of the optimizer's state is kept in the host's memory.

    Args:
        model: the model to be trained, in the mode to be trained in.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`. None if `batch_loss` is
            given.
        loader: an iterable of batches. Its first batches are read, and its batch size is the first one tried.
        optimizer: the optimizer that will train, so that the memory of its step counts. None: forward and backward
            passes only.
        batch_loss: called as `batch_loss(model, batch)` in place of `loss_func`, for any other layout of a batch.
        autocast: returns the context of the forward pass, as for mixed precision.
        max_batch_size: the largest size to try, samples. None: the dataset's length, if it has one.

    Raises:
        ValueError, TypeError: an argument is invalid, the loader has no batch, or the memory of the model's device
            cannot be read.
    """
    check_model(model)
    loss = BatchLoss(loss_func, batch_loss, autocast)
    check_batches(loader)
    if optimizer is not None:
        check_optimizer(optimizer, ", or None for no step")
        check_trains(optimizer, model)
        check_needs_no_closure(optimizer, "leave optimizer= out, which tries forward and backward passes alone")
    devices = {p.device for p in model.parameters()}
    memory = memory_of(devices)
    if memory is None:
        raise ValueError(
            f"model: the memory of {', '.join(map(str, devices)) or 'no device'} cannot be read. "
            "Move the model to CUDA or to the CPU of a Linux machine, or choose the batch size yourself."
        )
    if max_batch_size is not None:
        check_size("max_batch_size", max_batch_size)
    with preserved_loader(loader) as batches, preserved(model):
        looked_at = [batch for batch in islice(batches, LOOKED_AT) if batch_length(batch)]
    if not looked_at:
        raise ValueError("the loader gave no batch to try: give a loader of at least one batch")
    most = int(max_batch_size or _samples_of(loader) or UNKNOWN)
    return probe_batches(model, loss, looked_at, memory, most=most, optimizer=optimizer)


def _samples_of(loader: Any) -> int | None:
    """Samples of a loader's dataset. None if they are not known: of a stream, or where each of its items is a batch."""
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        return None
    return length_of(getattr(loader, "dataset", None))


def probe_batches(
    model: nn.Module, loss: BatchLoss, looked_at: list[Any], memory: DeviceMemory, *, most: int, optimizer: Any = None
) -> MemoryProbe:
    """Do the same as `probe_memory` with batches already read.

    Args:
        model: the model to be trained.
        loss: the loss of a batch.
        looked_at: batches of real data. The size of the first one is tried first.
        memory: the memory of the model's device.
        most: the largest size to try, samples.
        optimizer: any object with `step` and `state`, such as torch's or fastai's. None: no optimizer step.
    """
    batch = max(looked_at, key=_bytes_of_a_sample)
    start = min(batch_length(looked_at[0]), most)
    # Each trial with an optimizer puts the weights back. Without one only a forward pass that writes them changes them.
    values = WeightSnapshot(loss.parameters(model)) if optimizer is None else None
    try:
        trials = search(
            lambda size: try_size(model, loss, batch, size, memory, optimizer=optimizer),
            start, most, least=2 if has_batch_norm(model) else 1, careful=memory.careful,
        )  # fmt: skip
    finally:
        if values is not None:
            values.restore()
    return MemoryProbe(largest_fitting(trials), trials[-1].limit, tuple(trials))


def _bytes_of_a_sample(batch: Any) -> float:
    return batch_bytes(batch) / batch_length(batch)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
