"""The largest batch that a device's memory holds, by real training steps that leave nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import check_size
from ..model import (
    BatchLoss,
    batch_bytes,
    batch_length,
    has_batch_norm,
    preserved,
    preserved_loader,
)
from .device import DeviceMemory, memory_of
from .search import Trial, largest_fitting, search
from .trial import try_size

log = logging.getLogger(__name__)

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
    with preserved_loader(loader), preserved(model):
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


def _bytes_of_a_sample(batch: Any) -> float:
    return batch_bytes(batch) / batch_length(batch)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
