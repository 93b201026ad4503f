"""Lets a scheduler's own methods go by a SchedulerDriver, in a subclass made for the one object."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR

log = logging.getLogger(__name__)

PAST_ITS_END = (
    "the scheduler has come to its end, where it stays, and its step() is called on: the loop has made %d calls of it, "
    "which stand for more steps than it has. It goes by samples, and this loop takes more of them than the scheduler's "
    "steps stand for, as one does that ends after a number of batches: let it end after a number of samples, or give "
    "the scheduler as many steps as the whole epochs have at the first batch size."
)


class Driver(Protocol):
    """Tells where a scheduler is to go; see SchedulerDriver."""

    grown: bool

    def take_steps(self) -> int: ...
    def place(self, said: float, name: str = "step") -> float: ...


def _unmade(kind: Any) -> Any:
    return kind.__new__(kind)


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
    return float("inf")


def drive(scheduler: Any, driver: Driver, warn: Callable[..., None] = log.warning) -> None:
    """From now on let each `scheduler.step()` make as many steps as the driver says that it stands for.

    A call with an explicit epoch goes to the place that the driver says, and so does `step_update(num_updates)`, which
    timm's schedulers have. A schedule with an end stays there: the batch that crosses it makes the steps that are left.

    The methods are replaced in a subclass made for this one object: put on the object itself they would end up in its
    `state_dict`. A second call replaces the first. ReduceLROnPlateau, which follows a metric, is left alone. A copy, or
    what comes out of a pickle, is a stock scheduler: no loader drives it.

    Args:
        scheduler: the loop's.
        driver: tells where it is to go.
        warn: called with a warning's text and its values, where the loop goes on after the schedule's end.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    stock: Any = getattr(type(scheduler), "_stock", type(scheduler))
    end = scheduler.total_steps if isinstance(scheduler, OneCycleLR) else None
    ends = steps_left(scheduler) < float("inf")
    calls, warned = 0, False

    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        if args or kwargs:
            explicit(self, "step", "epoch", args, kwargs)
            return
        due, calls = driver.take_steps(), calls + 1
        # At the first batch size a call too many is the loop's own, and raises as ever.
        if ends and (due > 1 or driver.grown):
            left = end - self.last_epoch if end is not None else steps_left(self)
            if due > left:
                due = stays(left)
        for _ in range(due):
            stock.step(self)

    def stays(left: float) -> int:
        """Steps of a call that comes to the schedule's end or was made beyond it."""
        nonlocal warned
        if left <= 0 and not warned:
            warned = True
            warn(PAST_ITS_END, calls)
        return max(int(left), 0)

    def step_update(self: Any, *args: Any, **kwargs: Any) -> None:
        explicit(self, "step_update", "num_updates", args, kwargs)

    def explicit(self: Any, method: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in kwargs and kwargs[name] is not None:
            kwargs[name] = driver.place(kwargs[name], method)
        elif args and args[0] is not None:
            args = driver.place(args[0], method), *args[1:]
        getattr(stock, method)(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return _unmade, (stock,), self.__dict__.copy()

    members: dict[str, Any] = {"step": step, "__reduce_ex__": reduce, "_stock": stock}
    if not isinstance(scheduler, LRScheduler):
        members["step_update"] = step_update
    members |= {"__module__": stock.__module__, "__doc__": stock.__doc__}
    scheduler.__class__ = type(stock.__name__, (stock,), members)
