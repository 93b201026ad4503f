"""Drives a scheduler where a library's adapter states the steps of the schedule."""

from __future__ import annotations

from typing import Any

from .call_interval import CallInterval, StatedInterval
from .scheduler import SchedulerDriver


class StatedDriver(SchedulerDriver):
    """Makes the steps that the fixed run has made by now, as it is stated what makes one.

    Example: a step of the schedule at every batch of a fixed run at 4. Calls after batches of 4, 8 and 16 make 1, 2 and
    4 steps. Of three later calls that come after three such batches, the first makes all 7.

    A loop may call its scheduler less often all the same. Once an epoch is known by calls that come between iterations:
    each is one step. At every m-th step is known by two calls in a row after equally many, as for `LearntDriver`. Then
    m steps that are due are one. While that is not known, a call after several steps is one step, times as much as the
    batch has grown.

    Args:
        start, epoch_samples, epoch_steps, given: as for `SchedulerDriver`.
        interval: tells the steps that the fixed run has made.
    """

    def __init__(
        self, start: int, epoch_samples: int, epoch_steps: int, interval: StatedInterval, *, given: bool = True
    ) -> None:
        super().__init__(start, epoch_samples, epoch_steps, given=given)
        self._steps = self._interval = interval
        self._calls = CallInterval()  # in steps that are due, where batches are counted elsewhere
        self._owed = 0.0  # part of a step that calls so far have come to beyond whole ones
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
        due, self._due = self._due, 0
        own = self._interval.of_steps(delivered) if self.grown or passed != delivered else due
        if not self._calls.known:
            self._look(own)
        self.grown = self.grown or passed != delivered
        if not self.grown:
            return 1
        self._owed += due / self._calls.gap if self._calls.known else self._calls.ratio(due, own)
        steps = int(self._owed + 1e-9)
        self._owed -= steps
        return steps

    def _look(self, own: int) -> None:
        """Learn from a call how often the loop calls.

        Args:
            own: steps of the schedule that a call at every step would have made since the call before.
        """
        calls, interval = self._calls, self._interval
        if not calls.calls and own == interval.at(self._epoch_steps) > interval.steps:
            calls.learn(own // interval.steps)  # at the last batch of each epoch
        else:
            calls.look(own)
        at_each_step = own == interval.steps
        if calls.known and (calls.gap != 1 or not self._told):
            batches = interval.gap * calls.gap
            self._on_call(None if calls.gap == interval.at(self._epoch_steps) / interval.steps else batches)
            self._told = True
        elif at_each_step and not self._told:
            self._on_call(interval.gap)
            self._told = True

    def state_dict(self) -> dict[str, Any]:
        calls = self._calls.state_dict()
        return {**super().state_dict(), "by_step": self._by_step, "calls": calls, "owed_of_calls": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._by_step = state.get("by_step", False)  # a LearntDriver's state has none
        if "calls" in state:
            self._calls.load_state_dict(state["calls"])
            self._owed = state["owed_of_calls"]
