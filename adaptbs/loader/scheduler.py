"""Drives a torch LR scheduler by samples: a schedule is a function of samples seen, never of step counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..decision import fixed_batches
from .call_interval import CallInterval, StatedInterval
from .explicit_epochs import ExplicitEpochs


class SchedulerDriver:
    """Tells how many steps of the schedule one call of `scheduler.step()` stands for.

    The schedule goes to the place where the fixed run's would be, however often it is called. While the batch has its
    first size a call is one step, and the calls show their interval: how many batches of the fixed run a step
    stands for. Once the batch has another size, the batches that the fixed run would have delivered since the call
    before are divided by that. So a loop may call at every batch, at every m-th, several times a batch, or at every so
    many samples. As long as the interval is not known, a call stands for the fixed run's batches of each batch that was
    delivered.

    A call outside an iteration, as of a scheduler stepped once an epoch, is one step: epochs are equal shares of the
    run's progress, or passes over the data as in the fixed run.

    A loop that counts the fixed run's batches to an epoch by itself, and calls after so many larger ones, ends after as
    many batches as the fixed run. There a call stays one step, as its schedule would else run ahead of its end.

    Args:
        start: the size that the run began with, samples.
        epoch_samples: samples of an epoch.
        epoch_steps: n, batches of an epoch at the start size.
        given: True if there is a scheduler to drive.

    Attributes:
        given: True if there is a scheduler to drive.
        grown: True once a call has stood for other batches of the fixed run than those that were delivered.
        by_count: True once the loop is known to count batches to an epoch by itself.
    """

    def __init__(
        self,
        start: int,
        epoch_samples: int,
        epoch_steps: int,
        *,
        given: bool = True,
    ) -> None:
        self.given = given
        self._start, self._epoch_samples, self._epoch_steps = start, epoch_samples, epoch_steps
        self._on_call: Callable[[float | None], None] | None = None
        self._on_count: Callable[[int], None] | None = None
        self.by_count = False
        self._at, self._fixed = 0.0, 0  # the schedule's position, samples of the plan; the fixed run's batches there
        self._iterations = 0  # under way: more than one where a loop peeks into the loader inside another
        self._in_loop = False  # True once calls have been made inside the latest of them
        self._passed = self._batches = 0  # since the latest call: batches of the fixed run, and batches delivered
        self._epoch_passed = self._epoch_batches = 0  # the same, in the latest iteration until the latest call
        self._iteration = 0  # number of the latest
        self._owed = 0.0  # part of a step that calls so far have come to beyond whole ones
        self.grown = False
        self._interval = CallInterval()
        self._stated: StatedInterval | None = None
        self._of_steps: StatedInterval | None = None  # what it would be if each optimizer step were a call
        self._by_step = False  # where it is stated: True once calls have been made inside of an iteration
        self._before: dict[str, Any] = {}  # attributes before the latest iteration
        self._due = 0  # steps that the fixed run has made since the latest call, where that is stated
        self._explicit: dict[str, ExplicitEpochs] = {}
        self._told = False  # True once `on_call` was told what explicit epochs or stated calls count

    def state(self, steps: int, batches_per_step: int) -> None:
        """Know how many steps the loop makes for each optimizer step; see `StatedInterval`."""
        self._stated = StatedInterval(steps, batches_per_step, self._epoch_steps)

    def know(self, steps: int, batches_per_step: int) -> None:
        """Know how many optimizer steps the loop makes in an epoch, where no whole number of them makes one.

        This is used once the calls have shown that they are made after each.
        """
        self._of_steps = StatedInterval(1, batches_per_step, self._epoch_steps, steps)

    def on_call(self, listener: Callable[[float | None], None]) -> None:
        """From here on tell the listener what calls count, as they show it.

        Args:
            listener: called with the batches of the fixed run that a call stands for. None: it is made once an epoch.
        """
        self._on_call = listener

    def on_count(self, listener: Callable[[int], None]) -> None:
        """From here on tell the listener if the loop counts batches to an epoch by itself, and how many."""
        self._on_count = listener

    def begin_iteration(self) -> None:
        """An iteration over the loader begins."""
        self._before = {name: getattr(self, name) for name in _OF_BATCHES}
        self._iterations += 1
        self._iteration += 1
        self._in_loop = False
        # What has not been called for belongs to the iteration before.
        self._epoch_passed, self._epoch_batches = -self._passed, -self._batches

    def take_back(self) -> None:
        """Do not count the latest iteration, which was only a look at batches."""
        for name, value in self._before.items():
            setattr(self, name, value)

    def end_iteration(self) -> None:
        """An iteration ends, or is broken off."""
        self._iterations -= 1

    def moved(self, before: float, after: float) -> None:
        """The loop holds another batch. Its schedule's position is `before` before it and `after` after it."""
        if before != self._at:  # as between epochs
            self._fixed = fixed_batches(before, self._start, self._epoch_samples, self._epoch_steps)
        since, self._fixed = self._fixed, fixed_batches(after, self._start, self._epoch_samples, self._epoch_steps)
        self._batches, self._at, self._passed = self._batches + 1, after, self._passed + self._fixed - since
        if (counts := self._stated or self._of_steps) is not None:
            self._due += counts.at(self._fixed) - counts.at(since)

    def take_steps(self) -> int:
        """Take the steps that the call being made stands for, and return how many they are."""
        passed, batches, due = self._passed, self._batches, self._due
        self._passed = self._batches = 0
        if self._stated is not None:
            return self._take_stated(self._stated.gap, grown=passed != batches, batches=batches)
        if batches == self._epoch_steps and passed > batches + 1 and self._iterations:
            self._count_by_itself(batches)
        if self.by_count:
            return 1
        interval = self._interval
        if self._of_steps is not None:
            self._due = min(due - 1, 0)  # a step that the fixed run would not have made by now is one less to come
        # Of a loop that looks a batch ahead the last call comes when the iteration is over.
        if batches:
            self._in_loop = self._in_loop or self._iterations > 0
        elif not self._iterations and interval.gap >= 1:
            self._in_loop = False
        if not self._in_loop:
            return self._of_an_epoch()
        self._epoch_passed, self._epoch_batches = self._epoch_passed + passed, self._epoch_batches + batches
        if passed != batches:
            self.grown = True
        if not interval.known:
            self._look(batches)
        if not self.grown:
            return 1
        if self._of_steps is not None and interval.known and interval.gap == self._of_steps.gap:
            self._due = min(due, 0)
            return max(due, 0)
        self._owed += passed / interval.gap if interval.known else interval.ratio(passed, batches)
        steps = int(self._owed + 1e-9)
        self._owed -= steps
        return steps

    def _count_by_itself(self, batches: int) -> None:
        """A call is made after as many batches as the fixed run's epoch has, but larger ones."""
        if not self.by_count and self._on_count is not None:
            self._on_count(batches)
        if not self.by_count and self._on_call is not None:
            self._on_call(None)
        self.by_count = True

    def _take_stated(self, gap: float, *, grown: bool, batches: int) -> int:
        """Steps of a call where it is stated what calls count, however many of them follow each other."""
        # Of a loop that looks ahead an epoch's last call comes outside, and it may be the only one after a resume.
        self._by_step = self._by_step or (batches > 0 and self._iterations > 0)
        if not self._by_step:
            return self._of_an_epoch()
        if not self._told and self._on_call is not None:
            self._told = True
            self._on_call(gap)
        self.grown = self.grown or grown
        due, self._due = self._due, 0
        return due if self.grown else 1

    def _of_an_epoch(self) -> int:
        """Steps of a call outside an iteration."""
        if self._on_call is not None and self._at and not self._iterations and not self._interval.calls:
            self._on_call(None)
        return 1

    def _look(self, batches: int) -> None:
        """Learn from a call what calls count."""
        interval = self._interval
        if not interval.calls:  # what was delivered in iterations before, as to peek, has nothing to do with it
            batches = self._epoch_batches
        # The batch that ends an epoch by its progress may stand for some of the fixed run's next epoch.
        if not interval.calls and self._epoch_passed >= self._epoch_steps:
            interval.learn(self._epoch_steps)  # the loop calls at the last batch of each epoch
        else:
            interval.look(batches)
        if self._on_call is not None and (interval.known or interval.calls == 1):
            self._on_call(None if interval.gap == self._epoch_steps else interval.gap)

    def place(self, said: float, name: str = "step") -> float:
        """The place in the plan that a call with an explicit epoch or count of updates stands for.

        Args:
            said: the number that the loop gave.
            name: the method that was called: each may count another thing.
        """
        if name not in self._explicit:
            self._explicit[name] = ExplicitEpochs()
        passed, batches = self._passed, self._batches
        self._passed = self._batches = 0
        self._epoch_passed, self._epoch_batches = self._epoch_passed + passed, self._epoch_batches + batches
        for other in self._explicit.values():
            other.moved(passed, batches)
        if passed != batches:
            self.grown = True
        explicit = self._explicit[name]
        place = explicit.place(said, self._iteration, self._epoch_passed - self._epoch_batches)
        if not self._told and name == "step" and self._on_call is not None:
            self._tell(explicit.unit)
        return place

    def _tell(self, unit: float | None) -> None:
        """Say what explicit epochs count, once they have shown it.

        Args:
            unit: what one batch adds to the number; None while that is not known.
        """
        outside = self._at > 0 and not self._iterations
        self._told = unit is not None or outside
        if not self._told or self._on_call is None:
            return
        batches = self._epoch_steps if unit is None else round(1 / unit)
        by_the_epoch = abs(batches - self._epoch_steps) <= 1  # the loop may count its epoch's last batch or not
        self._on_call(None if by_the_epoch else max(batches, 1))

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, f"_{name}") for name in _REMEMBERED},
            "grown": self.grown,
            "by_count": self.by_count,
            "cadence": self._interval.state_dict(),
            "explicit": {name: explicit.state_dict() for name, explicit in self._explicit.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, f"_{name}", state[name])
        self.grown, self.by_count = state["grown"], state["by_count"]
        self._fixed = fixed_batches(self._at, self._start, self._epoch_samples, self._epoch_steps)
        self._interval.load_state_dict(state["cadence"])
        for name, saved in state["explicit"].items():
            self._explicit[name] = ExplicitEpochs()
            self._explicit[name].load_state_dict(saved)


_OF_BATCHES = ("_at", "_fixed", "_passed", "_batches", "_due", "_epoch_passed", "_epoch_batches")
_REMEMBERED = ("passed", "batches", "owed", "due", "by_step", "at", "iteration")
