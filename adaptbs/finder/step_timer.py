"""Measures t(B) of this device, by timing real training steps at a few batch sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

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
    loss.backward(model, batch)
    optimizer.step()


class _TimedSteps:
    """Takes training steps and times them.

    Attributes:
        together: number of steps that are timed together.
        times: the seconds of all steps so far, by batch size.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, optimizer: Any) -> None:
        device = next(model.parameters()).device
        self._model, self._loss, self._optimizer, self._watch = model, loss, optimizer, Stopwatch(device)
        self.together, self.times = QUEUED if device.type == "cuda" else 1, StepTimes()

    def take_one(self, batch: Any) -> float:
        """Take one step. Return its seconds."""
        seconds = self._seconds(batch, 1)
        self.times.add((batch_length(batch), seconds))  # `StepTimes` leaves the first steps out
        return seconds

    def take_together(self, batch: Any) -> None:
        """Take `together` steps."""
        if self.together > 1:
            train_step(self._model, self._loss, self._optimizer, batch)  # fills the queue, and is not timed
        self.times.add(*[(batch_length(batch), self._seconds(batch, self.together))] * self.together)

    def _seconds(self, batch: Any, steps: int) -> float:
        begin = self._watch.mark()
        for _ in range(steps):
            train_step(self._model, self._loss, self._optimizer, batch)
        end = self._watch.mark()
        self._watch.wait()
        return self._watch.seconds(begin, end) / steps


def _measure(model: nn.Module, loss: BatchLoss, optimizer: Any, block: list[Any]) -> Time | None:
    steps = _TimedSteps(model, loss, optimizer)
    batches, round_takes = _sizes_that_run(steps, loss, optimizer, block)
    affordable = min(KEEP // steps.together, int(BUDGET / (round_takes * steps.together)))
    for _ in range(max(ROUNDS, -(-ENOUGH // steps.together), affordable)):
        for batch in batches:
            steps.take_together(batch)
    return steps.times.fit()


def _sizes_that_run(steps: _TimedSteps, loss: BatchLoss, optimizer: Any, block: list[Any]) -> tuple[list[Any], float]:
    """Batches of the sizes that can be run, and the seconds of a step of each but the half batch, added up."""
    size = batch_length(block[0])
    alike = [batch for batch in block if batch_length(batch) == size]
    for _ in range(WARM_UP):
        took = steps.take_one(block[0])
    batches, round_takes = [block[0]], took
    for factor in LARGER:
        if len(alike) < factor or took >= LONG:
            break
        check_certain(block[0])
        larger = concat_batches(alike[:factor])
        tried = _attempt(partial(steps.take_one, larger))
        if tried is None:
            optimizer.zero_grad()
            break
        batches.append(larger)
        took = tried
        round_takes += took
    if size // 2 >= SMALLEST:
        smaller = loss.split(block[0], 0, size // 2)
        if _attempt(partial(steps.take_one, smaller)) is not None:
            batches.append(smaller)
    return batches, round_takes


def _attempt(function: Callable[[], T]) -> T | None:
    """The result of a function. None if it fails, for lack of memory or any other reason."""
    try:
        return function()
    except Exception as error:  # does not catch Ctrl-C
        log.info("training steps of some batch size cannot be timed: %s: %s", type(error).__name__, str(error))
    return None
