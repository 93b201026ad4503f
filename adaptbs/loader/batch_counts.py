"""Counts the batches between a loop's calls of its scheduler, and the batches of the fixed run meanwhile."""

from __future__ import annotations

from typing import Any

from ..decision import fixed_batches
from .call_interval import StatedInterval

_OF_BATCHES = ("_position", "_fixed", "_passed", "_delivered", "_epoch_passed", "_epoch_delivered", "_due")


class BatchCounts:
    """The position in the fixed run's plan, and the batches since the loop last called its scheduler.

    A batch of 16 stands for four batches of a fixed run at 4. So each count is kept twice: of the batches that were
    delivered, and of those that the fixed run would have delivered meanwhile, which it passed.

    Args:
        start: the size that the run began with, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: n, batches of an epoch at the start size.
    """

    def __init__(self, start: int, epoch_samples: int, epoch_steps: int) -> None:
        self._start, self._epoch_samples, self._epoch_steps = start, epoch_samples, epoch_steps
        self._position, self._fixed = 0.0, 0  # samples of the plan, and batches that the fixed run has delivered there
        self._passed = self._delivered = 0  # since the latest call
        self._epoch_passed = self._epoch_delivered = 0  # in the latest iteration, until the latest call
        self._iterations = 0  # under way: more than one where a loop peeks into the loader inside another
        self._iteration = 0  # number of the latest
        self._before: dict[str, Any] = {}  # what is counted of batches, before the latest iteration
        # Counts the fixed run's steps of the schedule, where that is known.
        self._steps: StatedInterval | None = None
        self._due = 0  # those that the loop's calls have not made; below zero where they are ahead

    def begin_iteration(self) -> None:
        """An iteration over the loader begins."""
        self._before = {name: getattr(self, name) for name in _OF_BATCHES}
        self._iterations += 1
        self._iteration += 1
        # What has not been called for belongs to the iteration before.
        self._epoch_passed, self._epoch_delivered = -self._passed, -self._delivered

    def take_back(self) -> None:
        """Do not count the latest iteration, which was only a look at batches."""
        for name, value in self._before.items():
            setattr(self, name, value)

    def end_iteration(self) -> None:
        """An iteration ends, or is broken off."""
        self._iterations -= 1

    @property
    def _is_between_epochs(self) -> bool:
        """True between two iterations, or after the last."""
        return self._position > 0 and not self._iterations

    def moved(self, before: float, after: float) -> None:
        """The loop holds another batch. Its schedule's position is `before` before it and `after` after it."""
        if before != self._position:  # as between epochs
            self._fixed = fixed_batches(before, self._start, self._epoch_samples, self._epoch_steps)
        since, self._fixed = self._fixed, fixed_batches(after, self._start, self._epoch_samples, self._epoch_steps)
        self._position, self._passed, self._delivered = after, self._passed + self._fixed - since, self._delivered + 1
        if self._steps is not None:
            self._due += self._steps.at(self._fixed) - self._steps.at(since)

    def state_dict(self) -> dict[str, Any]:
        return {
            "at": self._position,
            "passed": self._passed,
            "batches": self._delivered,
            "due": self._due,
            "iteration": self._iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._passed, self._delivered, self._due = state["passed"], state["batches"], state["due"]
        self._position, self._iteration = state["at"], state["iteration"]
        self._fixed = fixed_batches(self._position, self._start, self._epoch_samples, self._epoch_steps)
