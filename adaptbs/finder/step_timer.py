"""Times real training steps at a few batch sizes, cut and joined from batches at hand: t(B) of this device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..model import BatchLoss, batch_length, concat_batches, preserved_grads, slice_batch
from ..timing import ENOUGH, KEEP, WARM_UP, StepTimes, Stopwatch

if TYPE_CHECKING:
    from ..timing import Time

log = logging.getLogger(__name__)
T = TypeVar("T")

LARGER = (2, 4)  # times the batch
SMALLEST = 2  # samples; BatchNorm refuses one alone
LONG = 1.0  # seconds; where a step takes as long, no larger one is tried
BUDGET = 1.0  # seconds; quick steps, whose times vary more, are taken as often as fit into it


def measure_step_time(
    model: nn.Module, loss: BatchLoss, make_optimizer: Callable[[], Any], block: list[Any]
) -> Time | None:
    """t(B) of steps as they are made in training: forward, backward, the optimizer's; fetching data is no part of it.

    At half, once, twice and four times the batch, as far as the block holds so many samples and the device affords
    them; the sizes take turns, so that another load of the machine meets them all. To be called where weights and
    buffers are protected (`preserved_weights`): steps are taken.

    Args:
        model: in training mode.
        loss: of a batch.
        make_optimizer: makes what takes the steps, anything with step and zero_grad.
        block: batches; those as long as the first are used.

    Returns:
        None where steps of two sizes cannot be made, whatever the reason: then it is only not known.
    """
    # Hooks that wait for a gradient are the user's (they may step an optimizer): these steps are not for them.
    with preserved_grads(model.parameters()):
        return _attempt(lambda: _measure(model, loss, make_optimizer(), block))


def train_step(model: nn.Module, loss: BatchLoss, optimizer: Any, batch: Any) -> None:
    """One plain step."""
    optimizer.zero_grad()
    with torch.enable_grad():
        torch.autograd.backward(loss(model, batch))
    optimizer.step()


def _measure(model: nn.Module, loss: BatchLoss, optimizer: Any, block: list[Any]) -> Time | None:
    watch, times = Stopwatch(next(model.parameters()).device), StepTimes()
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]

    def seconds(batch: Any) -> float:
        begin = watch.mark()
        train_step(model, loss, optimizer, batch)
        end = watch.mark()
        watch.wait()
        return watch.seconds(begin, end)

    for _ in range(WARM_UP):  # which `StepTimes` leaves out
        took = seconds(block[0])
        times.add(size, took)
    chosen, round_takes = {size: block[0]}, took
    for factor in LARGER:
        if len(alike) < factor or took >= LONG:
            break
        larger = concat_batches(alike[:factor])
        tried = _attempt(lambda larger=larger: seconds(larger))  # type: ignore[misc]
        if tried is None:
            optimizer.zero_grad()
            break
        chosen[factor * size], took = larger, tried
        round_takes += took
    if size // 2 >= SMALLEST:
        smaller = slice_batch(block[0], 0, size // 2)
        if _attempt(lambda: seconds(smaller)) is not None:
            chosen[size // 2] = smaller
    for _ in range(max(ENOUGH, min(KEEP, int(BUDGET / round_takes)))):
        for length, batch in chosen.items():
            times.add(length, seconds(batch))
    return times.fit()


def _attempt(function: Callable[[], T]) -> T | None:
    """What it returns; None where it fails, of memory or of anything else."""
    try:
        return function()
    except Exception as error:  # (not Ctrl-C)
        log.info("steps of another batch size cannot be timed: %s: %s", type(error).__name__, error)
    return None
