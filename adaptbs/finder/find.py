"""bs_find: what `lr_find` is for the learning rate, for the batch size. Offline, and without a trace."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..checks import check_share, check_size
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
from ..model import BatchLoss, batch_length, preserved_loader, preserved_weights
from ..noise_scale import estimate, to_floats
from ..types import NoiseScale, SquaredNorms
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

    Block by block, `n_batch` batches are measured at unmoved weights and pooled over all pairs; then, with an `lr`,
    the same batches are trained on. Model, optimizer, random states and loader are left exactly as they were, also
    after an exception or Ctrl-C. Costs a forward and backward pass a batch, two when training meanwhile, and at the end
    a second or some fifty batches of training steps, which are timed.

    Args:
        model: to be measured in training mode.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`; None if `batch_loss`.
        loader: of batches; those shorter than the first of their block (an epoch's last) are left out.
        lr: to train with meanwhile; None trains nothing, and the noise scale is that of the weights as they are.
        num_it: how many batches; one epoch if None.
        n_batch: batches pooled in one block; four blocks or more make a useful interval.
        beta: smoothing of tr(Sigma) and |G|^2 from block to block, 0 (none) to 1 (plain mean).
        optimizer: a copy of it trains, and takes the steps that are timed; SGD if None. Larger batches are of use to
            Adam and its like.
        batch_loss: called as `batch_loss(model, batch)`, for any other layout; instead of `loss_func`.
        autocast: makes the context of the forward pass.
        confidence: of the interval.

    Raises:
        ValueError, TypeError: for arguments that cannot be, and where the loader gives fewer than two equal batches.

    Source: McCandlish et al. 2018, appendix A.1, arXiv:1812.06162, with consecutive batches in place of devices.
    """
    loss = BatchLoss(loss_func, batch_loss, autocast)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer={optimizer!r}: it must be a torch.optim.Optimizer")

    def make_optimizer(lr: float) -> Optimizer:
        return copy_of(optimizer, lr) if optimizer else SGD([p for p in model.parameters() if p.requires_grad], lr=lr)

    with preserved_loader(loader):
        return find_batch_size(
            model, loss, _fetch(loader), make_optimizer,
            lr=lr, num_it=num_it, n_batch=n_batch, beta=beta, confidence=confidence,
            adaptive=optimizer is not None and traits_of(optimizer).adaptive,
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
) -> BatchSizeSuggestion:
    """`bs_find` on an iterator of batches; `make_optimizer(lr)` makes what trains: anything with step and zero_grad."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: there is no gradient to measure the noise of")
    if num_it is not None:
        check_size("num_it", num_it)
    check_size("n_batch", n_batch)
    if n_batch < 2:
        raise ValueError(f"n_batch={n_batch}: noise shows only between two batches or more")
    check_share("confidence", confidence)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta!r}: it must lie between 0 (no smoothing) and 1 (plain mean)")
    measured: list[SquaredNorms] = []
    curve: list[NoiseScale] = []
    samples: list[int] = []
    seen, fullest = 0, list[Any]()
    with preserved_weights(model):
        model.train()
        gradient, optimizer = MeanGradient(loss), make_optimizer(lr) if lr is not None else None
        for block in _blocks(islice(fetched, num_it), n_batch):
            seen += sum(batch_length(batch) for batch in block)
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
    critical = critical_over_simple(adaptive)
    useful, most = suggest(curve, samples, batch_size, critical).useful, _largest(samples, batch_size)
    fits = _fits(model, loss, make_optimizer(lr or 0.0), fullest, most, useful)
    return suggest(curve, samples, batch_size, critical, step_time, fits)


def measure_block(model: nn.Module, gradient: MeanGradient, block: list[Any]) -> SquaredNorms | None:
    """Pool the batches of a block over all pairs, at the weights of now; None if fewer than two are equally long.

    A batch whose gradient is not finite is left out: in float16 one may overflow, to be scaled less the next time.
    """
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]
    pool, pooled = GradientPool(size), 0
    for batch in alike if len(alike) > 1 else []:
        found = gradient(model, batch)
        if squared_norm(found).isfinite():  # (here, unlike in training, the device may be waited for)
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
    """The last estimate, and what the controller would aim at with it: at most an eighth of the samples seen.

    The size is for any device of enough memory: it asks nothing of the step time, which is shown beside it.
    """
    last, largest = curve[-1], _largest(samples, batch_size)
    now = Situation(
        noise_scale=last, batch_size=batch_size, reference=reference_batch_size(batch_size), progress=0.0,
        step_time=None, max_batch_size=largest, critical=critical,
    )  # fmt: skip
    useful = min(goodput(now)[0], largest) if last.cautious > 0 else None
    fastest = None
    if step_time is not None and last.cautious > 0:
        fastest = nearest_power_of_2(min(goodput_optimum(now.critical * last.cautious, step_time), largest))
    return BatchSizeSuggestion(
        last.simple, last.low, last.high, min(useful, fits) if useful and fits else useful,
        tuple(samples), tuple(curve), batch_size, step_time, useful, fastest, fits, critical_over_simple=critical,
    )  # fmt: skip


def _largest(samples: list[int], batch_size: int) -> int:
    return max(batch_size, samples[-1] // 8)


def _fits(
    model: nn.Module, loss: BatchLoss, optimizer: Any, block: list[Any], most: int, useful: int | None
) -> int | None:
    """The largest batch that this device's memory holds, up to `most`; None where it cannot be found out."""
    memory = memory_of({p.device for p in model.parameters()})
    if memory is None:
        return None
    if memory.careful:  # (a host, which a batch rarely fills, but which is slow)
        most = useful or 0
    start = batch_length(block[0])
    try:
        return probe_batches(model, loss, block, memory, most=max(most, start), optimizer=optimizer).batch_size
    except Exception as error:  # (the noise scale, for which one has waited, is known all the same)
        log.info("what fits in memory cannot be tried: %s: %s", type(error).__name__, error)
        return None


def copy_of(optimizer: Optimizer, lr: float) -> Optimizer:
    """An optimizer of the same parameters, state and options, at `lr`; its hooks and schedulers stay behind."""
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict, {p: copy.deepcopy(state) for p, state in optimizer.state.items()})
    twin.param_groups = [{**group, "lr": lr} for group in optimizer.param_groups]
    return twin


def _fetch(loader: Iterable[Any]) -> Iterator[Any]:
    # Iteration begins with the first batch, not before: a DataLoader draws a seed then, and random states are restored
    # by that time. An adaptive loader's own iteration would measure and decide; only its batches are wanted.
    plain_batches: Callable[[], Iterator[Any]] = getattr(loader, "plain_batches", lambda: iter(loader))
    yield from plain_batches()


def _blocks(batches: Iterator[Any], n: int) -> Iterator[list[Any]]:
    while block := list(islice(batches, n)):
        yield block
