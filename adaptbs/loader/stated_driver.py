"""Drives a scheduler where a library's adapter states the steps of the schedule."""

from __future__ import annotations

from typing import Any

from .call_interval import StatedInterval
from .scheduler import SchedulerDriver


class StatedDriver(SchedulerDriver):
    """Makes the steps that the fixed run has made by now, as it is stated what makes one.

    Example: a step of the schedule at every batch of a fixed run at 4. Calls after batches of 4, 8 and 16 make 1, 2 and
    4 steps. Of three calls that come after the three batches, the first makes all 7.

    A loop that calls its scheduler once an epoch all the same is known by its calls, which come between iterations.
    Each is one step.

    Args:
        start, epoch_samples, epoch_steps, given: as for `SchedulerDriver`.
        interval: tells the steps that the fixed run has made.
    """

    def __init__(
        self, start: int, epoch_samples: int, epoch_steps: int, interval: StatedInterval, *, given: bool = True
    ) -> None:
        super().__init__(start, epoch_samples, epoch_steps, given=given)
        self._steps = self._interval = interval
        self._by_step = False  # True once calls have been made inside of an iteration

    def know(self, steps: int, batches_per_step: int) -> None:
        """Do nothing: it is stated."""

    def take_steps(self) -> int:
        """Take the steps that are due, all of them at the first of several calls in a row."""
        passed, delivered = self._passed, self._delivered
        self._passed = self._delivered = 0
        # Of a loop that looks ahead an epoch's last call comes outside, and it may be the only one after a resume.
        self._by_step = self._by_step or (delivered > 0 and self._iterations > 0)
        if not self._by_step:
            if self._is_between_epochs:
                self._on_call(None)
            return 1
        if not self._told:
            self._told = True
            self._on_call(self._interval.gap)
        self.grown = self.grown or passed != delivered
        due, self._due = self._due, 0
        return due if self.grown else 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "by_step": self._by_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._by_step = state.get("by_step", False)  # a LearntDriver's state has none
