"""Says why the noise scale cannot be measured, and what to do about it."""

from __future__ import annotations

from typing import Any

from ..gradients import NoiseMeter, Unsupported
from ..model import OF_A_LEARNER, OF_A_TRAINER, NotCutError, describe_batch

ANY_LAYOUT = "batch_loss=(model, batch) -> loss takes batches of any layout; "
BY_LOSS = "loss_func=, or batch_loss=(model, batch) -> loss, lets it be measured by halves in a pass of its own; "
WITHOUT_CALLBACKS = (
    "Apart from the step the loss is learn.loss_func(model(*xb), *yb), without the callbacks that change what it gets: "
    "let the model itself return what the loss takes; "
)
OF_A_PART = (
    "Apart from the step the loss is compute_loss(model, inputs, num_items_in_batch=...) of a part of the batch, as in "
    "evaluation; "
)
FAILED = (
    "the noise scale cannot be measured, so the batch size is held: %s. %soverhead=0 measures nothing and holds the "
    "batch."
)
FAILED_FOR_TARGET = (
    "the noise scale cannot be measured, so target= is given None for it: %s. %soverhead=0 measures nothing."
)


def cause_of(failure: Exception, batch: Any) -> str:
    """The cause of a failed measurement, in words.

    Args:
        failure: the error that it raised.
        batch: the batch that the loss was called on; None if it was not called.
    """
    if isinstance(failure, (NotCutError, Unsupported)):
        return str(failure)
    on = "" if batch is None else f" (the loss was called on a batch of {describe_batch(batch)})"
    return f"{type(failure).__name__}: {failure}{on}"


def advice_for(failure: Exception, meter: NoiseMeter | None) -> str:
    """The remedy, to follow the cause."""
    if isinstance(failure, NotCutError):
        return ""  # it says so itself
    called = meter.loss.called if meter is not None and meter.loss is not None else None
    if called == OF_A_LEARNER:
        return WITHOUT_CALLBACKS
    if called == OF_A_TRAINER:
        return OF_A_PART
    knows_loss = meter is not None and (meter.looks or not meter.in_step)
    return ANY_LAYOUT if knows_loss else BY_LOSS
