"""Makes a scheduler take the steps that its driver says, in a subclass made for the one object."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from .scheduler_steps import steps_left

log = logging.getLogger(__name__)

PAST_ITS_END = (
    "the scheduler has come to its end, where it stays, and its step() is called on: the loop has made %d calls of it, "
    "which stand for more steps than it has. It goes by samples, and this loop takes more of them than the scheduler's "
    "steps stand for, as one does that ends after a number of batches: let it end when loader.progress is 1, or give "
    "the scheduler as many steps as the whole epochs have at the first batch size."
)


OURS = ("step", "step_update", "_go_to", "__reduce_ex__")  # methods of a driven scheduler


class Driver(Protocol):
    """Tells where a scheduler is to go; see SchedulerDriver."""

    grown: bool

    def take_steps(self) -> int: ...
    def place(self, said: float, name: str = "step") -> float: ...


def drive(scheduler: Any, driver: Driver, warn: Callable[..., None] = log.warning) -> None:
    """From now on let each `scheduler.step()` make as many steps as the driver says that it stands for.

    A call with an explicit epoch goes to the place that the driver says, and so does `step_update(num_updates)`, which
    timm's schedulers have. A schedule with an end stays there: the batch that crosses it makes the steps that are left.

    A second call replaces the first. ReduceLROnPlateau, which follows a metric, is left alone. A copy, or what comes
    out of a pickle, is a stock scheduler: no loader drives it.

    Args:
        scheduler: the loop's.
        driver: tells where it is to go.
        warn: called with a warning's text and its values, where the loop goes on after the schedule's end.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    stock: Any = getattr(type(scheduler), "_stock", type(scheduler))
    driven = DrivenScheduler if isinstance(scheduler, LRScheduler) else DrivenByUpdates
    # A class of its own, because attributes of the object would end up in its `state_dict`.
    members = {"_stock": stock, "_driving": Driving(scheduler, driver, warn)}
    members |= {"__module__": stock.__module__, "__doc__": stock.__doc__}
    # The methods are copied, as an object may change its class only to one of the same layout. With a second base it is
    # another, where the stock class derives from ABC, as timm's do.
    methods = {name: value for kind in reversed(driven.__mro__) for name, value in vars(kind).items() if name in OURS}
    scheduler.__class__ = type(stock)(stock.__name__, (stock,), methods | members)


def release(scheduler: Any, driver: Driver) -> None:
    """Give a scheduler its own `step()` back, at the place that it has come to. Nothing if another driver has it."""
    driving = getattr(type(scheduler), "_driving", None)
    if driving is not None and driving.driver is driver:
        scheduler.__class__ = type(scheduler)._stock


class DrivenSchedule:
    """A scheduler that goes by a driver from `take` to `leave`; see `drive`.

    Args:
        scheduler, driver, warn: as for `drive`.
    """

    def __init__(self, scheduler: Any, driver: Driver, warn: Callable[..., None]) -> None:
        self._scheduler, self._driver, self._warn = scheduler, driver, warn

    def take(self) -> None:
        """Let the scheduler go by the driver, whichever it went by before."""
        drive(self._scheduler, self._driver, self._warn)

    def leave(self) -> None:
        """Let it go by nothing but its calls, if it goes by the driver."""
        release(self._scheduler, self._driver)


class Driving:
    """The driver of one scheduler, the schedule's end, and a count of the loop's calls.

    Attributes:
        driver: tells where the scheduler is to go.
        has_end: True if the schedule has a last step.
        total_steps: those of a OneCycleLR; else None.
        calls: numbers the loop's calls of `step()`, from 1.
    """

    def __init__(self, scheduler: Any, driver: Driver, warn: Callable[..., None]) -> None:
        self.driver, self.calls, self._warn, self._warned = driver, count(1), warn, False
        self.has_end = steps_left(scheduler) < float("inf")
        self.total_steps = scheduler.total_steps if isinstance(scheduler, OneCycleLR) else None

    def last_steps(self, left: float, call: int) -> int:
        """Steps of a call that comes to the schedule's end, or that is made beyond it.

        Args:
            left: steps that the schedule has left.
            call: number of the call.
        """
        if left <= 0 and not self._warned:
            self._warned = True
            self._warn(PAST_ITS_END, call)
        return max(int(left), 0)


class DrivenScheduler:
    """The methods of a scheduler that go by its driver, in place of those of its own class, `_stock`."""

    _stock: Any
    _driving: Driving

    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            self._go_to("step", "epoch", args, kwargs)
            return
        driving, stock = self._driving, self._stock
        due, call = driving.driver.take_steps(), next(driving.calls)
        # At the first batch size a call too many is the loop's own, and raises as ever.
        if driving.has_end and (due > 1 or driving.driver.grown):
            end = driving.total_steps
            left = end - self.last_epoch if end is not None else steps_left(self)
            if due > left:
                due = driving.last_steps(left, call)
        for _ in range(due):
            stock.step(self)

    def _go_to(self: Any, method: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the stock method with the place that the driver says, instead of the one in the argument `name`."""
        place = self._driving.driver.place
        if name in kwargs and kwargs[name] is not None:
            kwargs[name] = place(kwargs[name], method)
        elif args and args[0] is not None:
            args = place(args[0], method), *args[1:]
        getattr(self._stock, method)(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _unmade, (self._stock,), self.__dict__.copy()


class DrivenByUpdates(DrivenScheduler):
    """A scheduler that is also told its number of updates, as timm's are."""

    def step_update(self: Any, *args: Any, **kwargs: Any) -> None:
        self._go_to("step_update", "num_updates", args, kwargs)


def _unmade(kind: Any) -> Any:
    """An object whose `__init__` has not run: a copy takes its attributes from the state."""
    return kind.__new__(kind)
