"""Schedules as functions of samples seen, never of step counts: a torch LR scheduler driven by samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class SchedulePlace:
    """How many steps of the fixed run's schedule are due, now that so many samples of an epoch have been delivered.

    After s samples a run at the start size has made floor(s/start) steps, and all n at the epoch's end. A loop that
    steps its scheduler every m-th batch (gradient accumulation), or once an epoch, is recognised by its first call.

    Args:
        start: the size the run began with, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: n, batches of an epoch at the start size.
    """

    def __init__(self, start: int, epoch_samples: int, epoch_steps: int) -> None:
        self._start, self._epoch_samples, self._epoch_steps = start, epoch_samples, epoch_steps
        self._stride = 0  # batches between two calls of scheduler.step(), at the start size; 0: not known yet
        self._batches = self._samples = self._made = 0  # of this epoch

    def new_epoch(self) -> None:
        """Begin an epoch, also where the last one was broken off."""
        # A loop that steps every m-th batch may leave a step of a finished epoch for its first call in the next.
        self._made = min(0, self._made - self._epoch_total) if self._stride and self._epoch_done else 0
        self._batches = self._samples = 0

    def delivered(self, samples: int) -> None:
        """Take note of a batch that the loop now holds."""
        self._batches += 1
        self._samples += samples

    def steps_due(self) -> int:
        """How many steps one call of `scheduler.step()` stands for."""
        if self._stride == 0:
            self._stride = self._epoch_steps if self._epoch_done else max(1, self._batches)
        if self._stride >= self._epoch_steps > 1:
            return 1  # stepped once an epoch
        so_far = self._samples // (self._start * self._stride)
        due = self._epoch_total if self._epoch_done else min(so_far, self._epoch_total)
        steps, self._made = max(0, due - self._made), max(due, self._made)
        return steps

    @property
    def _epoch_done(self) -> bool:
        return self._samples >= self._epoch_samples

    @property
    def _epoch_total(self) -> int:
        return self._epoch_steps // self._stride

    def state_dict(self) -> dict[str, int]:
        return {"stride": self._stride, "batches": self._batches, "samples": self._samples, "made": self._made}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._stride, self._batches = state["stride"], state["batches"]
        self._samples, self._made = state["samples"], state["made"]


def drive(scheduler: LRScheduler, steps_due: Callable[[], int]) -> None:
    """From now on let each `scheduler.step()` make as many steps as are due.

    The method is replaced in a subclass made for this one object: put on the object itself it would end up in its
    `state_dict`. A second call replaces the first. ReduceLROnPlateau, which follows a metric, is left alone, and so
    is a call with an explicit epoch.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    stock: Any = getattr(type(scheduler), "_stock", type(scheduler))

    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            stock.step(self, *args, **kwargs)
            return
        for _ in range(steps_due()):
            stock.step(self)

    members = {"step": step, "_stock": stock, "__module__": stock.__module__, "__doc__": stock.__doc__}
    scheduler.__class__ = type(stock.__name__, (stock,), members)


def run_epochs(scheduler: object, epoch_steps: int) -> int | None:
    """The length of the run, epochs, as far as the scheduler knows it: from `total_steps` or `T_max`; else None.

    A number below the steps of one epoch counts epochs: that scheduler is stepped once an epoch.
    """
    total = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
    if not isinstance(total, int) or total < 1:
        return None
    return total if total < epoch_steps else round(total / epoch_steps)
