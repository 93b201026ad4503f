"""bs_find: finds the batch size before training, as `lr_find` finds the learning rate, and leaves no trace."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..checks import (
    check_batches,
    check_lr,
    check_model,
    check_optimizer,
    check_share,
    check_size,
    check_trains,
)
from ..decision import (
    Situation,
    critical_over_simple,
    goodput,
    goodput_optimum,
    nearest_power_of_2,
    reference_batch_size,
)
from ..gradients import GradientPool, MeanGradient, squared_norm
from ..hyperparameters import traits_of
from ..memory import memory_of, probe_batches
from ..model import (
    BatchLoss,
    batch_length,
    preserved_grads,
    preserved_loader,
    preserved_weights,
    without_hooks,
)
from ..noise_scale import estimate, to_floats
from ..types import NoiseScale, SquaredNorms
from .doubts import FinderDoubts, samples_of
from .step_timer import measure_step_time, train_step
from .suggestion import BatchSizeSuggestion

if TYPE_CHECKING:
    from ..timing import Time


log = logging.getLogger(__name__)


def bs_find(
    model: nn.Module,
    loss_func: Callable[..., Tensor] | None,
    loader: Iterable[Any],
    *,
    lr: float | None = None,
    num_it: int | None = None,
    n_batch: int = 20,
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
        n_batch: batches per block. Four blocks or more make a useful interval.
        beta: smoothing of tr(Sigma) and |G|^2 from block to block, from 0 (none) to 1 (plain mean).
        optimizer: a copy of it trains and takes the timed steps. None: SGD. Give the one that you will train with,
            because Adam and its kin make use of larger batches than SGD.
        batch_loss: called as `batch_loss(model, batch)` in place of `loss_func`, for any other layout of a batch.
        autocast: returns the context of the forward pass, as for mixed precision.
        confidence: confidence of the interval, between 0 and 1.

    Returns:
        The noise scale with its interval, and batch sizes by noise, time and memory.

    Raises:
        ValueError, TypeError: an argument is invalid, or the loader gives fewer than two batches of equal size.

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

    def make_optimizer(lr: float) -> Optimizer:
        return copy_of(optimizer, lr) if optimizer else SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    with preserved_loader(loader):
        return find_batch_size(
            model, loss, _fetch(loader), make_optimizer,
            lr=lr, num_it=num_it, n_batch=n_batch, beta=beta, confidence=confidence,
            adaptive=optimizer is not None and traits_of(optimizer).adaptive, samples_of_batch=samples_of(loader),
        )  # fmt: skip


def find_batch_size(
    model: nn.Module,
    loss: BatchLoss,
    fetched: Iterator[Any],
    make_optimizer: Callable[[float], Any],
    *,
    lr: float | None,
    num_it: int | None,
    n_batch: int,
    beta: float,
    confidence: float,
    adaptive: bool,
    samples_of_batch: int | None = None,
) -> BatchSizeSuggestion:
    """Do the same as `bs_find` on an iterator of batches.

    Args:
        model, lr, num_it, n_batch, beta, confidence: as for `bs_find`.
        loss: the loss of a batch.
        fetched: the batches.
        make_optimizer: called as `make_optimizer(lr)`. Returns any object with `step` and `zero_grad`.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
        samples_of_batch: samples of a batch. None: not known.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: there is no gradient to measure the noise of")
    if num_it is not None:
        check_size("num_it", num_it)
    check_size("n_batch", n_batch)
    if n_batch < 2:
        raise ValueError(f"n_batch={n_batch}: noise shows only between two batches or more, so give at least 2")
    check_share("confidence", confidence)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta!r}: it must lie between 0 (no smoothing) and 1 (plain mean)")
    measured: list[SquaredNorms] = []
    curve: list[NoiseScale] = []
    samples: list[int] = []
    seen, fullest, doubts = 0, list[Any](), FinderDoubts(model, loss, samples_of_batch)
    # The user's gradient hooks may step an optimizer. They must not see the gradients of these steps.
    with preserved_weights(model), preserved_grads(model.parameters()):
        model.train()
        gradient, optimizer = MeanGradient(loss), make_optimizer(lr) if lr is not None else None
        for block in _blocks(islice(fetched, num_it), n_batch):
            seen += sum(batch_length(batch) for batch in block)
            for batch in block:
                doubts.look(batch)
            norms = measure_block(model, gradient, block)
            if norms is not None:
                measured += to_floats([norms])
                weights = [n.large_size * beta**age for age, n in enumerate(reversed(measured))][::-1]
                curve.append(estimate(measured, weights, confidence))
                samples.append(seen)
            if optimizer is not None:
                for batch in block:
                    train_step(model, loss, optimizer, batch)
            fullest = max(block, fullest, key=len)
        step_time = None
        if curve:
            step_time = measure_step_time(model, loss, lambda: make_optimizer(lr or 0.0), fullest)
    if not curve:
        raise ValueError(
            "the loader gave fewer than two batches of equal size and finite gradient: "
            "lower its batch size or raise num_it"
        )
    batch_size = measured[0].small_size
    curve = [replace(each, caveat=doubts.reason) for each in curve]
    critical = critical_over_simple(adaptive)
    useful, most = suggest(curve, samples, batch_size, critical).useful, _largest(samples, batch_size)
    fits = _fits(model, loss, make_optimizer(lr or 0.0), fullest, most, useful)
    return replace(suggest(curve, samples, batch_size, critical, step_time, fits), confidence=confidence)


def measure_block(model: nn.Module, gradient: MeanGradient, block: list[Any]) -> SquaredNorms | None:
    """Pool the batches of a block over all pairs, at the current weights. None if fewer than two are equally long.

    A batch whose gradient is not finite is left out. In float16 a gradient may overflow; the next one is scaled less.
    """
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]
    pool, pooled = GradientPool(size), 0
    for batch in alike if len(alike) > 1 else []:
        found = gradient(model, batch)
        if squared_norm(found).isfinite():  # waits for the device, which costs little here, unlike in training
            pool.add(found)
            pooled += 1
    return pool.norms() if pooled > 1 else None


def suggest(
    curve: list[NoiseScale],
    samples: list[int],
    batch_size: int,
    critical: float,
    step_time: Time | None = None,
    fits: int | None = None,
) -> BatchSizeSuggestion:
    """The suggestion from the last estimate: the batch size that a run would aim at with it.

    The size is at most an eighth of the samples seen. It does not depend on the step time, so it holds for any device
    with enough memory.

    Args:
        curve: the smoothed estimate after each block.
        samples: samples seen up to each block.
        batch_size: size of the batches measured, samples.
        critical: the critical batch over B_simple.
        step_time: t(B), seconds, which gives the fastest batch size. None if unknown.
        fits: the largest batch that fits in memory, samples. None if unknown.
    """
    last, largest = curve[-1], _largest(samples, batch_size)
    now = Situation(
        noise_scale=last, batch_size=batch_size, reference=reference_batch_size(batch_size), progress=0.0,
        step_time=None, max_batch_size=largest, critical=critical,
    )  # fmt: skip
    known = last.cautious > 0 and last.caveat is None
    useful = min(goodput(now)[0], largest) if known else None
    fastest = None
    if step_time is not None and known:
        fastest = nearest_power_of_2(min(goodput_optimum(now.critical * last.believed, step_time), largest))
    return BatchSizeSuggestion(
        last.simple, last.low, last.high, min(useful, fits) if useful and fits else useful,
        tuple(samples), tuple(curve), batch_size, step_time, useful, fastest, fits, critical_over_simple=critical,
        doubt=last.doubt,
    )  # fmt: skip


def _largest(samples: list[int], batch_size: int) -> int:
    return max(batch_size, samples[-1] // 8)


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


def _fetch(loader: Iterable[Any]) -> Iterator[Any]:
    # A generator, so that the iteration starts with the first batch: a DataLoader draws a seed at its start, and only
    # by then are the random states saved. An adaptive loader's own iteration would measure and decide, so its plain
    # batches are used.
    plain_batches: Callable[[], Iterator[Any]] = getattr(loader, "plain_batches", lambda: iter(loader))
    yield from plain_batches()


def _blocks(batches: Iterator[Any], n: int) -> Iterator[list[Any]]:
    while block := list(islice(batches, n)):
        yield block
