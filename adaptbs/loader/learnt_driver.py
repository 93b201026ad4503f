"""Drives a scheduler whose calls show by themselves what they count."""

from __future__ import annotations

from typing import Any

from .call_interval import CallInterval, StatedInterval
from .scheduler import SchedulerDriver


class LearntDriver(SchedulerDriver):
    """Learns from the loop's calls how many batches of the fixed run a step stands for.

    While the batch has its first size a call is one step, and the calls show their interval. Once the batch has another
    size, the batches that the fixed run would have delivered since the call before are divided by it. So a loop may
    call at every batch, at every m-th, several times a batch, or at every so many samples. As long as the interval is
    not known, a call stands for the fixed run's batches of each batch that was delivered.

    Example: the fixed run takes batches of 4, and the loop calls after every second batch. Two calls after batches
    4 4 | 4 4 are a step each and show the interval, 2 batches. A third call after 8 8, four batches of the fixed run,
    is 4 / 2 = 2 steps. After 8 4, three batches, it would be one step, and half a step is owed to the next call.

    Two kinds of loop are found by their calls, and there a call stays one step:

    - A scheduler stepped once an epoch is called outside of an iteration. Epochs are equal shares of the run's
      progress, or passes over the data as in the fixed run.
    - A loop that counts the fixed run's batches to an epoch by itself, and calls after so many larger ones, ends after
      as many batches as the fixed run. Its schedule would else run ahead of its end.
    """

    def __init__(self, start: int, epoch_samples: int, epoch_steps: int, *, given: bool = True) -> None:
        super().__init__(start, epoch_samples, epoch_steps, given=given)
        self._interval = CallInterval()
        self._owed = 0.0  # part of a step that calls so far have come to beyond whole ones
        self._in_loop = self._was_in_loop = False  # True once calls have been made inside the latest iteration
        self._counts_itself = False  # True once the loop is known to count batches to an epoch by itself

    def know(self, steps: int, batches_per_step: int) -> None:
        """Know how many optimizer steps the loop makes in an epoch, where no whole number of batches makes one.

        This is used once the calls have shown that they are made after each.
        """
        self._steps = StatedInterval(1, batches_per_step, self._epoch_steps, steps)

    def begin_iteration(self) -> None:
        """An iteration over the loader begins."""
        super().begin_iteration()
        self._was_in_loop, self._in_loop = self._in_loop, False

    def take_back(self) -> None:
        """Do not count the latest iteration: calls that come after it are made where they were made before."""
        super().take_back()
        self._in_loop = self._was_in_loop

    def take_steps(self) -> int:
        """Take the steps that the call being made stands for, and return how many they are."""
        # This runs at every step, so it is written out, and enters no other function once the interval is known.
        interval, passed, delivered, due = self._interval, self._passed, self._delivered, self._due
        self._passed = self._delivered = 0
        # Does the loop count batches to an epoch by itself?
        if delivered == self._epoch_steps and passed > delivered + 1 and self._iterations:
            self._found_counting(delivered)
        if self._counts_itself:
            return 1
        if self._steps is not None:
            self._due = min(due - 1, 0)  # a step that the fixed run would not have made by now is one less to come
        # Is it called inside an iteration? Of a loop that looks a batch ahead the last call comes when that is over.
        if delivered:
            self._in_loop = self._in_loop or self._iterations > 0
        elif not self._iterations and interval.gap >= 1:
            self._in_loop = False
        if not self._in_loop:
            if self._is_between_epochs and not interval.calls:
                self._on_call(None)
            return 1
        # It is: learn the interval, and count by it once the batch has grown.
        self._epoch_passed, self._epoch_delivered = self._epoch_passed + passed, self._epoch_delivered + delivered
        if passed != delivered:
            self.grown = True
        if not interval.known:
            self._look(delivered)
        if not self.grown:
            return 1
        if self._steps is not None and interval.known and interval.gap == self._steps.gap:
            self._due = min(due, 0)
            return max(due, 0)
        self._owed += passed / interval.gap if interval.known else interval.ratio(passed, delivered)
        steps = int(self._owed + 1e-9)
        self._owed -= steps
        return steps

    def _found_counting(self, batches: int) -> None:
        """A call is made after as many batches as the fixed run's epoch has, but larger ones."""
        if not self._counts_itself:
            self._counts_itself = True
            self._on_count(batches)
            self._on_call(None)

    def _look(self, delivered: int) -> None:
        """Learn from a call what calls count."""
        interval = self._interval
        if not interval.calls:  # what was delivered in iterations before, as to peek, has nothing to do with it
            delivered = self._epoch_delivered
        # The batch that ends an epoch by its progress may stand for some of the fixed run's next epoch.
        if not interval.calls and self._epoch_passed >= self._epoch_steps:
            interval.learn(self._epoch_steps)  # the loop calls at the last batch of each epoch
        else:
            interval.look(delivered)
        if interval.known or interval.calls == 1:
            self._on_call(None if interval.gap == self._epoch_steps else interval.gap)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "owed": self._owed,
            "by_count": self._counts_itself,
            "in_loop": self._in_loop or (self._iterations > 0 and self._interval.calls > 0),
            "cadence": self._interval.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "cadence" in state:  # else it is a StatedDriver's state
            self._owed, self._counts_itself = state["owed"], state["by_count"]
            self._interval.load_state_dict(state["cadence"])
            self._in_loop = state.get("in_loop", False)  # else the call that a loop owes would be one of an epoch's end
