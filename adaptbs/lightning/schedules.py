"""Learning rate schedules in Lightning: each follows the stock run's."""

from __future__ import annotations

from typing import Any, Protocol

from ..loader import LearntDriver, drive, release
from .plan import StockRun


class Schedule(Protocol):
    """One scheduler of a fit, moved on as batches are delivered."""

    def begin_epoch(self) -> None: ...
    def moved(self, before: float, after: float) -> None: ...
    def know_steps(self, of_epoch: int, batches: int) -> None: ...
    def end_epoch(self) -> None: ...
    def leave(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def schedules_of(trainer: Any, stock: StockRun) -> list[Schedule]:
    """The schedules that must follow the batches.

    Schedules that Lightning steps once an epoch, or by a metric, are left alone.
    """
    configs = [config for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau]
    if not trainer.lightning_module.automatic_optimization:
        return [CalledSchedule(config.scheduler, stock) for config in configs]
    return [StepSchedule(config, stock) for config in configs if config.interval == "step"]


class StepSchedule:
    """Counts the steps of a scheduler with interval "step" in automatic optimization, for `drive`.

    Lightning steps the scheduler at an optimizer step if the batch's number is a multiple of its `frequency`. With
    larger batches there are fewer such numbers. So during the fit it is called at each optimizer step, and makes the
    steps that the stock run has made since the last one.

    Args:
        config: Lightning's configuration of the scheduler, with its frequency.
        stock: the stock run.

    Attributes:
        grown: True once a batch has stood for several batches of the stock run, or for none.
    """

    def __init__(self, config: Any, stock: StockRun) -> None:
        self._config, self._stock, self._frequency = config, stock, config.frequency
        self.grown, self._due = False, 0
        config.frequency = 1
        drive(config.scheduler, self)

    def begin_epoch(self) -> None:
        return None

    def moved(self, before: float, after: float) -> None:
        """Record a batch, given the samples of its epoch before and after it."""
        first, last = self._stock.batches(before), self._stock.batches(after)
        self.grown = self.grown or last - first != 1
        self._due += self._stock.steps(first, last, self._frequency)

    def know_steps(self, of_epoch: int, batches: int) -> None:
        return None  # the stock run knows them

    def take_steps(self) -> int:
        """The number of steps for which the present call stands."""
        due, self._due = self._due, 0
        return due

    def place(self, said: float, name: str = "step") -> float:
        """The step or epoch that the module passes itself. It is right already, so it is returned as it is."""
        return said

    def end_epoch(self) -> None:
        return None

    def leave(self) -> None:
        """Restore Lightning's frequency and the scheduler's own step."""
        self._config.frequency = self._frequency
        release(self._config.scheduler, self)

    def state_dict(self) -> dict[str, Any]:
        return {"due": self._due, "grown": self.grown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._due, self.grown = state["due"], state["grown"]


class CalledSchedule:
    """A scheduler that the module steps itself, in manual optimization. Its calls show what it counts.

    Args:
        scheduler: the scheduler.
        stock: the stock run.
    """

    def __init__(self, scheduler: Any, stock: StockRun) -> None:
        self._scheduler, self._driver = scheduler, LearntDriver(stock.start, stock.epoch_samples, stock.epoch_batches)
        self.begin_epoch, self.moved = self._driver.begin_iteration, self._driver.moved
        self.end_epoch, self.know_steps = self._driver.end_iteration, self._driver.know
        self.state_dict, self.load_state_dict = self._driver.state_dict, self._driver.load_state_dict
        drive(scheduler, self._driver)

    def leave(self) -> None:
        """Restore the scheduler's own step."""
        release(self._scheduler, self._driver)
