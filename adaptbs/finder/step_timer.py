"""Measures t(B) of this device, by timing real training steps at a few batch sizes."""

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

LARGER = (2, 4)  # multiples of the batch
SMALLEST = 2  # samples, because BatchNorm refuses a batch of one
LONG = 1.0  # seconds of a step from which on no larger batch is tried
BUDGET = 1.0  # seconds for all timed steps; short steps vary more, and are repeated as often as fits


def measure_step_time(
    model: nn.Module, loss: BatchLoss, make_optimizer: Callable[[], Any], block: list[Any]
) -> Time | None:
    """Measure t(B), the seconds of a training step: forward pass, backward pass and the optimizer's step.

    Fetching data is not included. t(B) is measured at half, once, twice and four times the batch, if the block has so
    many samples and they fit in memory. The sizes take turns, so that a change of the machine's load affects all of
    them. The steps change the model, so call this inside `preserved_weights`.

    Args:
        model: the model, in training mode.
        loss: the loss of a batch.
        make_optimizer: makes the optimizer, any object with `step` and `zero_grad`.
        block: batches. Those as long as the first are used.

    Returns:
        t(B), or None if steps of two sizes cannot be made, for whatever reason.
    """
    # The user's gradient hooks may step an optimizer. They must not see the gradients of these steps.
    with preserved_grads(model.parameters()):
        return _attempt(lambda: _measure(model, loss, make_optimizer(), block))


def train_step(model: nn.Module, loss: BatchLoss, optimizer: Any, batch: Any) -> None:
    """Take one training step: forward pass, backward pass and the optimizer's step."""
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

    for _ in range(WARM_UP):  # `StepTimes` leaves these out
        took = seconds(block[0])
        times.add((size, took))
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
            times.add((length, seconds(batch)))
    return times.fit()


def _attempt(function: Callable[[], T]) -> T | None:
    """The result of a function. None if it fails, for lack of memory or any other reason."""
    try:
        return function()
    except Exception as error:  # does not catch Ctrl-C
        log.info("training steps of some batch size cannot be timed: %s: %s", type(error).__name__, error)
    return None
