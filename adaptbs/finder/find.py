"""bs_find: finds the batch size before training, as `lr_find` finds the learning rate, and leaves no trace."""

from __future__ import annotations

import copy
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..checks import (
    check_batches,
    check_lr,
    check_model,
    check_needs_no_closure,
    check_optimizer,
    check_share,
    check_size,
    check_trains,
)
from ..decision import critical_over_simple
from ..hyperparameters import traits_of
from ..memory import memory_of, probe_batches
from ..model import BatchLoss, batch_length, in_training, length_of, preserved_loader, without_hooks
from .blocks import block_length, measure_blocks
from .doubts import samples_of
from .sizes import largest_suggested, suggest, useful_batch_size
from .suggestion import BatchSizeSuggestion

log = logging.getLogger(__name__)


def bs_find(
    model: nn.Module,
    loss_func: Callable[..., Tensor] | None,
    loader: Iterable[Any],
    *,
    lr: float | None = None,
    num_it: int | None = None,
    n_batch: int | None = None,
    beta: float = 0.99,
    optimizer: Optimizer | None = None,
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    confidence: float = 0.9,
) -> BatchSizeSuggestion:
    """Find the noise scale of a model on its data, and the batch size to use.

    The batches are measured in blocks of `n_batch` at fixed weights, pooled over all pairs of a block. If `lr` is
    given, the model is then trained on the same batches before the next block. Model, optimizer, random states and
    loader are restored exactly, also after an exception or Ctrl-C. Each batch costs one forward and backward pass, or
    two if the model is trained. At the end training steps are timed, for about a second or fifty batches.

    Args:
        model: the model, measured in training mode.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`. None if `batch_loss` is
            given.
        loader: an iterable of batches. A batch shorter than the first of its block, such as an epoch's last, is not
            measured.
        lr: learning rate to train with between blocks. None: no training, and the noise scale is that of the current
            weights.
        num_it: number of batches. None: one epoch.
        n_batch: batches per block. None: 20, or fewer where there would be less than four blocks, which an estimate
            needs.
        beta: smoothing of tr(Sigma) and |G|^2 from block to block, from 0 (none) to 1 (plain mean).
        optimizer: a copy of it trains and takes the timed steps. None: SGD. Give the one that you will train with,
            because Adam and its kin make use of larger batches than SGD.
        batch_loss: called as `batch_loss(model, batch)` in place of `loss_func`, for any other layout of a batch.
        autocast: returns the context of the forward pass, as for mixed precision.
        confidence: confidence of the interval, between 0 and 1.

    Returns:
        The noise scale with its interval, and batch sizes by noise, time and memory.

    Raises:
        ValueError, TypeError: an argument is invalid, the loader gives fewer than two batches of equal size, or no
            gradient of two of them is finite.

    Source: McCandlish et al. 2018, appendix A.1, arXiv:1812.06162, with consecutive batches in place of devices.
    """
    check_model(model)
    loss = BatchLoss(loss_func, batch_loss, autocast)
    check_batches(loader)
    if optimizer is not None:
        check_optimizer(optimizer, ", or None for SGD")
        check_trains(optimizer, model)
    if lr is not None:
        check_lr(lr)
        if optimizer is not None:
            check_needs_no_closure(optimizer, "leave lr= out, which measures at the present weights alone")

    def make_optimizer(lr: float) -> Optimizer:
        return copy_of(optimizer, lr) if optimizer else SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    with preserved_loader(loader) as fetched:
        return find_batch_size(
            model, loss, fetched, make_optimizer,
            lr=lr, num_it=num_it, n_batch=n_batch, beta=beta, confidence=confidence,
            adaptive=optimizer is not None and traits_of(optimizer).adaptive, samples_of_batch=samples_of(loader),
            batches=length_of(loader),
        )  # fmt: skip


def find_batch_size(
    model: nn.Module,
    loss: BatchLoss,
    fetched: Iterator[Any],
    make_optimizer: Callable[[float], Any],
    *,
    lr: float | None,
    num_it: int | None,
    n_batch: int | None,
    beta: float,
    confidence: float,
    adaptive: bool,
    samples_of_batch: int | None = None,
    batches: int | None = None,
) -> BatchSizeSuggestion:
    """Do the same as `bs_find` on an iterator of batches.

    Args:
        model, lr, num_it, n_batch, beta, confidence: as for `bs_find`.
        loss: the loss of a batch.
        fetched: the batches.
        make_optimizer: called as `make_optimizer(lr)`. Returns any object with `step` and `zero_grad`.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
        samples_of_batch: samples of a batch. None: not known.
        batches: number of batches of the loader. None: not known.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: there is no gradient to measure the noise of")
    if num_it is not None:
        check_size("num_it", num_it)
    if n_batch is None:
        n_batch = block_length(batches if num_it is None or batches is None else min(num_it, batches))
    check_size("n_batch", n_batch)
    if n_batch < 2:
        raise ValueError(f"n_batch={n_batch}: noise shows only between two batches or more, so give at least 2")
    check_share("confidence", confidence)
    if isinstance(beta, bool) or not isinstance(beta, Real):
        raise TypeError(f"beta={beta!r}: it must be a number between 0 (no smoothing) and 1 (plain mean)")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta!r}: it must lie between 0 (no smoothing) and 1 (plain mean)")
    measured = measure_blocks(
        model, loss, islice(fetched, num_it and min(num_it, sys.maxsize)), make_optimizer,
        lr=lr, n_batch=min(n_batch, sys.maxsize), beta=beta, confidence=confidence, samples_of_batch=samples_of_batch,
    )  # fmt: skip
    critical = critical_over_simple(adaptive)
    useful, most = useful_batch_size(measured, critical), largest_suggested(measured)
    fits = _fits(model, loss, make_optimizer(lr or 0.0), measured.block, most, useful)
    return replace(suggest(measured, critical, fits), confidence=confidence)


def _fits(
    model: nn.Module, loss: BatchLoss, optimizer: Any, block: list[Any], most: int, useful: int | None
) -> int | None:
    """The largest batch up to `most` that fits in this device's memory, samples. None if it cannot be found."""
    memory = memory_of({p.device for p in model.parameters()})
    if memory is None:
        return None
    if memory.careful:  # a CPU is slow, and a batch rarely fills the host's memory, so try no more than is useful
        most = useful or 0
    start = batch_length(block[0])
    try:
        with in_training(model):
            return probe_batches(model, loss, block, memory, most=max(most, start), optimizer=optimizer).batch_size
    except Exception as error:  # the noise scale took long to measure, so it must not be lost now
        log.info("the largest batch that fits in memory is not known: %s: %s", type(error).__name__, str(error))
        return None


def copy_of(optimizer: Optimizer, lr: float) -> Optimizer:
    """Copy an optimizer with its parameters, state and options, but at `lr` and without hooks and schedulers."""
    twin = without_hooks(optimizer)
    twin.state = defaultdict(dict, {p: copy.deepcopy(state) for p, state in optimizer.state.items()})
    twin.param_groups = [{**group, "lr": lr} for group in optimizer.param_groups]
    return twin
