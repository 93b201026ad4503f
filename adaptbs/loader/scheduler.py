"""Drives a torch LR scheduler by samples: a schedule is a function of samples seen, never of step counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..decision import fixed_batches


class SchedulerDriver:
    """Tells how many steps of the schedule one call of `scheduler.step()` stands for.

    As many as the fixed run would have delivered batches meanwhile, for each batch that was delivered: exactly 1 while
    the batch has its first size, wherever the loop makes its calls (every batch, every m-th, with some left out). So
    after s samples of an epoch a loop that calls every batch has made min(floor(s/start), n) steps, and all n at the
    epoch's end. A call outside an iteration, as of a scheduler stepped once an epoch, is one step. In a run that ends
    by progress it is as many as whole epochs of the plan have been completed since the last such call.

    Args:
        start: the size that the run began with, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: n, batches of an epoch at the start size.
        given: whether there is a scheduler to drive.
    """

    def __init__(self, start: int, epoch_samples: int, epoch_steps: int, *, given: bool = True) -> None:
        self.given = given
        self._start, self._epoch_samples, self._epoch_steps = start, epoch_samples, epoch_steps
        self._by_progress = False
        self._at, self._fixed = 0.0, 0  # the schedule's position, samples of the plan; the fixed run's batches there
        self._epochs = 0  # steps made by calls outside an iteration
        self._iterations = 0  # under way: more than one where a loop peeks into the loader inside another
        self._in_loop = False  # whether calls have been made inside the latest of them
        self._passed = self._batches = 0  # since the latest call: batches of the fixed run, and batches delivered
        self._owed = 0.0  # part of a step that calls so far have come to beyond whole ones

    def go_by_progress(self) -> None:
        """Count epochs of the plan, where the run ends by its progress."""
        self._by_progress = True

    def go_by_epochs(self) -> None:
        """Count each call outside an iteration as an epoch again."""
        self._by_progress = False

    def begin_iteration(self) -> None:
        """Take note of an iteration over the loader."""
        self._iterations += 1
        self._in_loop = False

    def end_iteration(self) -> None:
        """Take note of its end, also where it was broken off."""
        self._iterations -= 1

    def moved(self, before: float, after: float) -> None:
        """Take note of a batch that the loop now holds, from its schedule's position before and after it."""
        sizes = self._start, self._epoch_samples, self._epoch_steps
        if before != self._at:  # as between epochs
            self._fixed = fixed_batches(before, *sizes)
        since, self._fixed = self._fixed, fixed_batches(after, *sizes)
        self._batches, self._at, self._passed = self._batches + 1, after, self._passed + self._fixed - since

    def take_steps(self) -> int:
        """Take the steps that the call being made stands for, and return how many they are."""
        passed, batches = self._passed, self._batches
        self._passed = self._batches = 0
        # Of a loop that looks a batch ahead the last call comes when the iteration is over.
        self._in_loop = bool(batches) and (self._iterations > 0 or self._in_loop)
        if not self._in_loop and not self._iterations and self._by_progress:
            due = int(self._at / self._epoch_samples + 1e-9) - self._epochs
            self._epochs += due
            return due
        if not self._in_loop:
            return 1
        self._owed += passed / batches
        steps = int(self._owed + 1e-9)
        self._owed -= steps
        return steps

    def state_dict(self) -> dict[str, float]:
        return {name: getattr(self, f"_{name}") for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, f"_{name}", state[name])
        self._fixed = fixed_batches(self._at, self._start, self._epoch_samples, self._epoch_steps)


_REMEMBERED = ("passed", "batches", "owed", "at", "epochs")

PAST_ITS_END = (
    "A scheduler given to an AdaptiveDataLoader goes by samples, and this loop has taken more of them than the "
    "scheduler's steps stand for, as one does that ends its epochs after a number of batches: let it end them after a "
    "number of samples, or give the scheduler as many steps as the whole epochs have at the first batch size."
)


def _unmade(kind: type[LRScheduler]) -> LRScheduler:
    return kind.__new__(kind)


def drive(scheduler: LRScheduler, take_steps: Callable[[], int]) -> None:
    """From now on let each `scheduler.step()` make as many steps as `take_steps` returns.

    The method is replaced in a subclass made for this one object: put on the object itself it would end up in its
    `state_dict`. A second call replaces the first. ReduceLROnPlateau, which follows a metric, is left alone, and so is
    a call with an explicit epoch. A copy, or what comes out of a pickle, is a stock scheduler: no loader drives it.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    stock: Any = getattr(type(scheduler), "_stock", type(scheduler))

    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            stock.step(self, *args, **kwargs)
            return
        due = take_steps()
        try:
            for _ in range(due):
                stock.step(self)
        except ValueError as error:  # OneCycleLR's, which counts its steps
            if due > 1 and hasattr(error, "add_note"):
                error.add_note(PAST_ITS_END)
            raise

    def reduce(self: Any, protocol: Any) -> Any:
        return _unmade, (stock,), self.__dict__.copy()

    members = {"step": step, "__reduce_ex__": reduce, "_stock": stock}
    members |= {"__module__": stock.__module__, "__doc__": stock.__doc__}
    scheduler.__class__ = type(stock.__name__, (stock,), members)


def run_epochs(scheduler: object, epoch_steps: int, accumulation_steps: int = 1) -> int | None:
    """The length of the run, epochs, as far as the scheduler tells by `total_steps` or `T_max`; else None.

    A whole number of epochs' steps counts steps, and fewer than one epoch's steps counts epochs: that scheduler is
    stepped once an epoch. Anything else could be either. Where several batches make a step, what is left of them at
    an epoch's end may make one more or not.

    Args:
        scheduler: a torch LR scheduler.
        epoch_steps: batches of an epoch of the fixed run.
        accumulation_steps: batches of an optimizer step.
    """
    total = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
    if not isinstance(total, int) or total < 1:
        return None
    for steps in (epoch_steps // accumulation_steps, -(-epoch_steps // accumulation_steps)):
        if 0 < steps <= total and total % steps == 0:
            return total // steps
    return total if total < epoch_steps // accumulation_steps else None
