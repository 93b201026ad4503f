"""Passes batches to a loop: which of them it works on, which it is through with, and what that counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..decision import Progress
from ..sampling import BatchInfo
from .look_ahead import LookAhead

T = TypeVar("T")

ONE_AT_A_TIME = "persistent workers serve one iteration at a time: end it before the next"


class BatchTracker:
    """Passes batches on and keeps count of those that the loop has come to work on.

    Args:
        run: that they count for.
        start: the size that the run began with, samples of an optimizer step.
        worth: of a sample in a step of so many, in samples of the reference batch.
        stepped: called with its samples when the loop is through with an optimizer step.
        placed: told where the schedule is before and after each batch that the loop comes to work on.

    Attributes:
        in_hand: the batch that the loop works on.
        fetched: the latest it was given: another one, where it looks ahead.
        schedule_span: where the schedule is before and after the batch in hand, samples.
        ever_changed: whether any batch so far was cut at another size than the first.
        longest: of the batches so far, samples.
    """

    def __init__(
        self,
        run: Progress,
        start: int,
        *,
        worth: Callable[[int], float],
        stepped: Callable[[int], None],
        placed: Callable[[float, float], None] | None = None,
    ) -> None:
        self._run, self._start, self._worth, self._stepped, self._placed = run, start, worth, stepped, placed
        self.in_hand = self.fetched = BatchInfo(start, start)
        self.schedule_span, self.ever_changed, self.longest = (0.0, 0.0), False, 0
        self._step_length = 0  # samples of the step that the batch in hand belongs to, so far
        self._resumed = False  # whether the next iteration is the rest of one

    def deliver(self, batches: Iterable[T], issued: deque[BatchInfo], loop: LookAhead) -> Iterator[T]:
        """Pass an epoch's batches on, or what was left of the one under way when a state was saved; see Controller."""
        # (Another iteration may be under way: each keeps its own place.)
        here = Iteration(loop, issued, self._run.epoch, self._run.epoch_position if self._resumed else 0)
        resumed, self._resumed = self._resumed, False
        try:
            if resumed:
                self._finish()  # the batch that the saved run was working on
            one_by_one = False  # whether it is known that the loop looks at no batch ahead: nearly always, and quicker
            for batch in batches if not (resumed and self._run.complete) else ():
                if one_by_one:
                    self._begin(here)
                    self.fetched = self.in_hand
                    yield batch
                    self._finish()
                else:
                    self.fetched = here.fetch()
                    here.advance(self._begin, self._finish, begun=loop.begun)
                    yield batch
                    here.advance(self._begin, self._finish, finished=loop.finished)
                    one_by_one = loop.ahead == 0 and here.finished == here.fetched
                if self._run.max_extra is not None and self._run.complete:
                    return
            here.advance(self._begin, self._finish, begun=here.fetched)
            if issued:
                raise RuntimeError(ONE_AT_A_TIME)
        finally:
            loop.close()
            self._run.end_epoch()

    def _begin(self, here: Iteration) -> None:
        try:
            self.in_hand = nominal, length, _, _ = here.issued.popleft()
        except IndexError:
            raise RuntimeError(ONE_AT_A_TIME) from None
        run = self._run
        here.position += length
        run.epoch = here.epoch
        worth = 1.0 if run.max_extra is None else self._worth(nominal)
        self.schedule_span = run.deliver(nominal, length, here.position, worth)
        if length > self.longest:
            self.longest = length
        if nominal != self._start:
            self.ever_changed = True
        self._step_length += length
        if self._placed is not None:
            self._placed(*self.schedule_span)

    def _finish(self) -> None:
        if self.in_hand.ends_step:
            length, self._step_length = self._step_length, 0
            self._stepped(length)

    def begin_anew(self) -> None:
        """Let the next iteration be a whole epoch, also where a state was saved in the middle of one."""
        self._resumed, self._run.epoch_position, self._step_length = False, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "in_hand": self.in_hand.cut, "schedule_span": list(self.schedule_span),
            "ever_changed": self.ever_changed, "longest": self.longest, "step_length": self._step_length,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the run's own state before: it says whether an epoch is under way."""
        before, after = state["schedule_span"]
        self.in_hand, self.schedule_span = BatchInfo(*state["in_hand"]), (before, after)
        self.ever_changed, self.longest = state["ever_changed"], state["longest"]
        self._step_length, self._resumed = state["step_length"], self._run.under_way


class Iteration:
    """One pass over the loader.

    Args:
        loop: that takes its batches.
        issued: what each batch was cut at, oldest first; a batch leaves it when the loop comes to work on it.
        epoch: from 0.
        position: samples of this epoch that the loop has come to work on.
    """

    def __init__(self, loop: LookAhead, issued: deque[BatchInfo], epoch: int, position: int) -> None:
        self.loop, self.issued, self.epoch, self.position = loop, issued, epoch, position
        self.fetched = self.begun = self.finished = 0

    def fetch(self) -> BatchInfo:
        """Take note of a batch that the loop is given; what it was cut at."""
        self.loop.fetched()
        waiting = self.fetched - self.begun
        self.fetched += 1
        if len(self.issued) <= waiting:
            raise RuntimeError(ONE_AT_A_TIME)
        return self.issued[waiting]

    def advance(
        self, begin: Callable[[Iteration], None], finish: Callable[[], None], *, begun: int = 0, finished: int = 0
    ) -> None:
        """Begin and finish batches, in turn, until the loop has begun so many and is through with so many."""
        while self.begun < max(begun, finished) or self.finished < finished:
            if self.finished < self.begun:
                finish()
                self.finished += 1
            else:
                begin(self)
                self.begun += 1
