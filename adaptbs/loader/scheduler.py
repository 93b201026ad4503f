"""Drives a torch LR scheduler by samples: a schedule is a function of samples seen, never of step counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .batch_counts import BatchCounts
from .explicit_epochs import ExplicitEpochs


def _nobody(_: object) -> None:
    """Stands for a listener where there is none."""


class SchedulerDriver(BatchCounts, ABC):
    """Tells how many steps of the schedule one call of `scheduler.step()` stands for.

    The schedule goes to the place where the fixed run's would be, however often it is called. There is a driver for
    each way of knowing what a call counts: `LearntDriver` learns it from the calls, and `StatedDriver` is told. Both
    move a call with an explicit epoch, `scheduler.step(epoch)`, on in the same way; see `ExplicitEpochs`.

    Args:
        start, epoch_samples, epoch_steps: as for `BatchCounts`.
        given: True if there is a scheduler to drive.

    Attributes:
        given: True if there is a scheduler to drive.
        grown: True once a call has stood for other batches of the fixed run than those that were delivered.
    """

    def __init__(self, start: int, epoch_samples: int, epoch_steps: int, *, given: bool = True) -> None:
        super().__init__(start, epoch_samples, epoch_steps)
        self.given, self.grown = given, False
        self._explicit: dict[str, ExplicitEpochs] = {}  # by the method that was called: each may count another thing
        self._on_call: Callable[[float | None], None] = _nobody
        self._on_count: Callable[[int], None] = _nobody
        self._told = False  # True once `on_call` was told what explicit epochs or stated calls count

    def on_call(self, listener: Callable[[float | None], None]) -> None:
        """From here on tell the listener what calls count, as they show it.

        Args:
            listener: called with the batches of the fixed run that a call stands for. None: it is made once an epoch.
        """
        self._on_call = listener

    def on_count(self, listener: Callable[[int], None]) -> None:
        """From here on tell the listener if the loop counts batches to an epoch by itself, and how many."""
        self._on_count = listener

    @abstractmethod
    def know(self, steps: int, batches_per_step: int) -> None:
        """Know how many optimizer steps the loop makes in an epoch, where no whole number of batches makes one."""

    @abstractmethod
    def take_steps(self) -> int:
        """Take the steps that the call being made stands for, and return how many they are."""

    def place(self, said: float, name: str = "step") -> float:
        """The place in the plan that a call with an explicit epoch or count of updates stands for.

        Args:
            said: the number that the loop gave.
            name: the method that was called.
        """
        passed, delivered = self._passed, self._delivered
        self._passed = self._delivered = 0
        self._epoch_passed, self._epoch_delivered = self._epoch_passed + passed, self._epoch_delivered + delivered
        self.grown = self.grown or passed != delivered
        if name not in self._explicit:
            self._explicit[name] = ExplicitEpochs()
        for each in self._explicit.values():
            each.moved(passed, delivered)
        explicit = self._explicit[name]
        place = explicit.place(said, self._iteration, self._epoch_passed - self._epoch_delivered)
        if name == "step" and not self._told:
            self._tell_unit(explicit.unit)
        return place

    def _tell_unit(self, unit: float | None) -> None:
        """Say what explicit epochs count, once they have shown it.

        Args:
            unit: what one batch adds to the number; None while that is not known.
        """
        self._told = unit is not None or self._is_between_epochs
        if self._told:
            batches = self._epoch_steps if unit is None else round(1 / unit)
            by_the_epoch = abs(batches - self._epoch_steps) <= 1  # the loop may count its epoch's last batch or not
            self._on_call(None if by_the_epoch else max(batches, 1))

    def state_dict(self) -> dict[str, Any]:
        explicit = {name: explicit.state_dict() for name, explicit in self._explicit.items()}
        return {**super().state_dict(), "grown": self.grown, "explicit": explicit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.grown = state["grown"]
        for name, saved in state["explicit"].items():
            self._explicit[name] = ExplicitEpochs()
            self._explicit[name].load_state_dict(saved)
