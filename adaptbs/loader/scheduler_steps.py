"""Reads from a scheduler how many steps it has, and how many epochs they are."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, OneCycleLR, SequentialLR


class Total(NamedTuple):
    """Steps that a scheduler says that it has.

    Attributes:
        steps: their number.
        name: the argument that says so.
        of_the_run: True if they are those of a whole run; else they may be those of a cycle.
    """

    steps: int
    name: str
    of_the_run: bool

    def __str__(self) -> str:
        return f"{self.name}={self.steps}"


def total_of(scheduler: Any) -> Total | None:
    """The steps that a scheduler says that it has; None where it does not tell."""
    if isinstance(scheduler, ChainedScheduler):
        known = [total for total in map(total_of, scheduler._schedulers) if total is not None]
        return min(known, key=lambda total: (not total.of_the_run, -total.steps), default=None)
    if isinstance(scheduler, SequentialLR):
        last = total_of(scheduler._schedulers[-1])
        return last and last._replace(steps=last.steps + scheduler._milestones[-1])
    for name in ("total_steps", "T_max"):
        steps = getattr(scheduler, name, None)
        if isinstance(steps, int) and steps >= 1:
            return Total(steps, name, name == "total_steps")
    if isinstance(scheduler, LambdaLR):  # as Hugging Face's schedules are made
        for function in scheduler.lr_lambdas:
            steps = function.keywords.get("num_training_steps") if isinstance(function, functools.partial) else None
            if isinstance(steps, int) and steps >= 1:
                return Total(steps, "num_training_steps", True)
    return None


def whole_epochs(total: int, epoch_steps: int, batches_per_call: int = 1) -> int | None:
    """Epochs of a run of `total` calls, one every `batches_per_call` batches; None if they are no whole number.

    The batches left at an epoch's end may or may not make one more call, so both readings are tried.
    """
    for calls in (epoch_steps // batches_per_call, -(-epoch_steps // batches_per_call)):
        if 0 < calls <= total and total % calls == 0:
            return total // calls
    return None


def run_epochs(scheduler: object, epoch_steps: int, accumulation_steps: int = 1) -> int | None:
    """The likely length of the run, epochs, as far as the scheduler tells; else None.

    A whole number of epochs' steps counts steps, and fewer than one epoch's steps counts epochs: that scheduler is
    stepped once an epoch. Anything else could be either.

    Args:
        scheduler: a torch LR scheduler.
        epoch_steps: batches of an epoch of the fixed run.
        accumulation_steps: batches of an optimizer step.
    """
    total = total_of(scheduler)
    if total is None:
        return None
    epochs = whole_epochs(total.steps, epoch_steps, accumulation_steps)
    return total.steps if epochs is None and total.steps < epoch_steps // accumulation_steps else epochs


def steps_left(scheduler: Any) -> float:
    """Steps that a scheduler can still make; inf where it has no end."""
    if isinstance(scheduler, OneCycleLR):
        return float(max(scheduler.total_steps - scheduler.last_epoch, 0))
    if isinstance(scheduler, SequentialLR):
        last, begins = scheduler._schedulers[-1], scheduler._milestones[-1]
        here = scheduler.last_epoch
        if here >= begins:
            return steps_left(last)
        return begins - here + (float(last.total_steps) if isinstance(last, OneCycleLR) else steps_left(last))
    if isinstance(scheduler, ChainedScheduler):
        return min(map(steps_left, scheduler._schedulers))
    if isinstance(scheduler, LambdaLR) and (total := total_of(scheduler)) is not None:
        return float(max(total.steps - scheduler.last_epoch, 0))  # beyond it a cosine would rise again
    return float("inf")
