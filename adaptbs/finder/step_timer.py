"""Measures t(B) of this device, by timing real training steps at a few batch sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..model import BatchLoss, batch_length, check_certain, concat_batches
from ..timing import ENOUGH, KEEP, WARM_UP, StepTimes, Stopwatch

if TYPE_CHECKING:
    from ..timing import Time

log = logging.getLogger(__name__)
T = TypeVar("T")

LARGER = (2, 4)  # multiples of the batch
SMALLEST = 2  # samples, because BatchNorm refuses a batch of one
LONG = 1.0  # seconds of a step from which on no larger batch is tried
BUDGET = 1.0  # seconds for all timed steps; short steps vary more, and are repeated as often as fits
# Steps timed together where a device queues work. Timed alone, each would wait for an empty queue to be filled again.
QUEUED = 8
ROUNDS = 3  # fewest rounds through the sizes


def measure_step_time(
    model: nn.Module, loss: BatchLoss, make_optimizer: Callable[[], Any], block: list[Any]
) -> Time | None:
    """Measure t(B), the seconds of a training step: forward pass, backward pass and the optimizer's step.

    Fetching data is not included. t(B) is measured at half, once, twice and four times the batch, if the block has so
    many samples and they fit in memory. The sizes take turns, so that a change of the machine's load affects all of
    them. The steps change the model, so call this inside `preserved_weights` and `preserved_grads`.

    Args:
        model: the model, in training mode.
        loss: the loss of a batch.
        make_optimizer: makes the optimizer, any object with `step` and `zero_grad`.
        block: batches. Those as long as the first are used.

    Returns:
        t(B), or None if steps of two sizes cannot be made, for whatever reason.
    """
    return _attempt(lambda: _measure(model, loss, make_optimizer(), block))


def train_step(model: nn.Module, loss: BatchLoss, optimizer: Any, batch: Any) -> None:
    """Take one training step: forward pass, backward pass and the optimizer's step."""
    optimizer.zero_grad()
    with torch.enable_grad():
        torch.autograd.backward(loss(model, batch))
    optimizer.step()


def _measure(model: nn.Module, loss: BatchLoss, optimizer: Any, block: list[Any]) -> Time | None:
    device = next(model.parameters()).device
    watch, times, together = Stopwatch(device), StepTimes(), QUEUED if device.type == "cuda" else 1
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]

    def seconds(batch: Any, steps: int = 1) -> float:
        if steps > 1:
            train_step(model, loss, optimizer, batch)  # fills the queue, and is not timed
        begin = watch.mark()
        for _ in range(steps):
            train_step(model, loss, optimizer, batch)
        end = watch.mark()
        watch.wait()
        return watch.seconds(begin, end) / steps

    def try_one(batch: Any) -> float:
        took = seconds(batch)
        times.add((batch_length(batch), took))  # `StepTimes` leaves the first steps out
        return took

    for _ in range(WARM_UP):
        took = try_one(block[0])
    chosen, round_takes = {size: block[0]}, took
    for factor in LARGER:
        if len(alike) < factor or took >= LONG:
            break
        check_certain(block[0])
        larger = concat_batches(alike[:factor])
        tried = _attempt(lambda larger=larger: try_one(larger))  # type: ignore[misc]
        if tried is None:
            optimizer.zero_grad()
            break
        chosen[factor * size], took = larger, tried
        round_takes += took
    if size // 2 >= SMALLEST:
        smaller = loss.split(block[0], 0, size // 2)
        if _attempt(lambda: try_one(smaller)) is not None:
            chosen[size // 2] = smaller
    affordable = min(KEEP // together, int(BUDGET / (round_takes * together)))
    for _ in range(max(ROUNDS, -(-ENOUGH // together), affordable)):
        for length, batch in chosen.items():
            times.add(*[(length, seconds(batch, together))] * together)
    return times.fit()


def _attempt(function: Callable[[], T]) -> T | None:
    """The result of a function. None if it fails, for lack of memory or any other reason."""
    try:
        return function()
    except Exception as error:  # does not catch Ctrl-C
        log.info("training steps of some batch size cannot be timed: %s: %s", type(error).__name__, str(error))
    return None
