"""Passes batches to a loop: which of them it works on, which it is through with, and the position in the epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

from ..decision import Progress
from ..sampling import BatchInfo
from .iteration import ONE_AT_A_TIME, Iteration
from .look_ahead import LookAhead

T = TypeVar("T")


class EpochEvents(Protocol):
    """Called by the tracker around the batches of one iteration, for a face to do what only it does."""

    def begin_epoch(self) -> None:
        """The loop asks for its first batch."""
        ...

    def before_batch(self, batch: Any) -> None:
        """The loop is about to be given a batch."""
        ...

    def before_end(self) -> None:
        """The epoch has its share of the progress, and is about to end by that."""
        ...

    def end_epoch(self) -> bool:
        """The iteration is over, or was broken off. Return True if it was only a look, which counts for nothing."""
        ...


class Place(NamedTuple):
    """The place of a run within an epoch, to which it goes back after a look at batches; see `BatchTracker`."""

    current: BatchInfo
    schedule_span: tuple[float, float]
    step_samples: int
    is_done: bool
    told_size: int | None
    iteration: Iteration | None
    resume_at: int | None
    ever_changed: bool
    longest: int
    cut_sizes: dict[int, int]


class BatchTracker:
    """Passes batches on and keeps count of those that the loop has come to work on.

    Args:
        progress: the progress of the run.
        start: the size that the run begins with, samples of an optimizer step.
        sample_efficiencies: effective samples of one sample, by cut size.
        on_step_end: called when the loop is through with an optimizer step, with the step's samples, the size that it
            was cut at, and the longest batch so far.
        on_schedule_moved: called with the schedule's position before and after each batch that the loop comes to work
            on.
        on_cut_size: called where the loop comes to work on a batch that was cut at another size than the one before,
            with that size, and with None where an iteration ends.

    Attributes:
        current: the batch that the loop works on.
        latest_fetched: the latest that it was given; another one where it looks ahead.
        schedule_span: the schedule's position before and after the current batch, samples.
        ever_changed: True once a batch was cut at another size than the first.
        longest: samples of the longest batch so far.
        cut_sizes: for each number of samples that a batch has had, the size that the first such was cut at.
        epoch_samples: samples that the latest epoch to end has taken.
        ends_here: True if the epoch ends with the current batch's optimizer step, by its share of the progress.
    """

    def __init__(
        self,
        progress: Progress,
        start: int,
        *,
        sample_efficiencies: Mapping[int, float],
        on_step_end: Callable[[int, int, int], None],
        on_schedule_moved: Callable[[float, float], None] | None = None,
        on_cut_size: Callable[[int | None], None] | None = None,
    ) -> None:
        self._progress, self._start, self._sample_efficiencies = progress, start, sample_efficiencies
        self._on_step_end, self._on_schedule_moved, self._on_cut_size = on_step_end, on_schedule_moved, on_cut_size
        self._told_size: int | None = None  # the latest that `on_cut_size` was called with
        self.current = self.latest_fetched = BatchInfo(start, start)
        self.schedule_span, self.ever_changed, self.longest = (0.0, 0.0), False, 0
        self.cut_sizes: dict[int, int] = {}
        self.epoch_samples = 0
        self._step_samples = 0  # of the step that the current batch belongs to, so far
        self._is_done = False  # True once the loop is known to be through with the current batch
        self._iteration: Iteration | None = None  # the one that the loop has worked in last
        self.ends_here = False
        self._resume_at: int | None = None  # where the next iteration goes on in its epoch, if it does

    @property
    def epoch_position(self) -> int:
        """Samples of this epoch that the loop has come to work on; 0 between epochs."""
        return self._iteration.position if self._iteration is not None else self._resume_at or 0

    @property
    def under_way(self) -> bool:
        """True while an epoch has begun and not ended."""
        return self.epoch_position > 0

    def deliver(
        self,
        batches: Iterable[T],
        queue: deque[BatchInfo],
        look_ahead: LookAhead,
        events: EpochEvents | None = None,
        is_new: Callable[[T], bool] | None = None,
        next_pass: Callable[[], Iterable[T]] | None = None,
    ) -> Iterator[T]:
        """Pass an epoch's batches on, or the rest of the one that was under way when a state was saved.

        An epoch is a pass, or a share of the run's progress. A share ends with the optimizer step that crosses its end,
        and goes on with another pass where one is over before.

        Args:
            batches: of a pass, as they are fetched.
            queue: their sizes when they were cut, in the same order, filled as batches are fetched. A batch leaves it
                when the loop comes to work on it.
            look_ahead: tells which batch the loop works on.
            events: called around the batches.
            is_new: False for a batch that is not to be delivered, because it was before a stream was resumed.
            next_pass: begins another pass, whose sizes go to the same queue. None: an epoch ends with the pass.
        """
        if events is not None:
            events.begin_epoch()
        resumed = self._resume_at is not None
        with self._iterating(queue, look_ahead, events) as iteration:
            if resumed:
                self._finish()  # the batch that the saved run was working on
                if self._progress.epoch_complete and self.current.ends_step:
                    return
            one_by_one = False  # known to be through with each batch before it asks for the next, as most loops are
            for of_pass in self._passes(batches, iteration, next_pass):
                # This runs at every step. So what a loop does that takes batches one by one is written out here.
                for batch in of_pass:
                    if is_new is not None and not is_new(batch):
                        continue
                    if one_by_one:
                        self._begin(iteration)
                        self.latest_fetched = self.current
                    else:
                        self._fetch(iteration)
                    if events is not None:
                        events.before_batch(batch)
                    yield batch
                    if one_by_one:
                        if self.current.ends_step and not self._is_done:
                            self._on_step_end(self._step_samples, self.current.cut_size, self.longest)
                        self._is_done = False
                    else:
                        one_by_one = self._wants_next(iteration)
                    if self.ends_here and self.current.ends_step and self._ends(events):
                        return

    @contextmanager
    def _iterating(
        self, queue: deque[BatchInfo], look_ahead: LookAhead, events: EpochEvents | None
    ) -> Iterator[Iteration]:
        """An iteration over an epoch, or over the rest of one. It may begin inside of another one."""
        progress, resume_at = self._progress, self._resume_at
        outer, place = (self._iteration, progress.epoch_end, self.ends_here), self._place
        if resume_at is None:
            progress.begin_epoch()
        # Another iteration may be under way, so each keeps its own place.
        iteration = Iteration(look_ahead, queue, progress.epoch, resume_at or 0)
        if resume_at is not None:
            self._resume_at, self._iteration = None, iteration
        try:
            yield iteration
        finally:
            look_ahead.close()
            is_a_look = events is not None and events.end_epoch()
            self._end_epoch(counts=not is_a_look)
            if is_a_look:
                self._go_back_to(place)
            if outer[0] is not None and resume_at is None:
                progress.go_on_to(outer[1])
                self.ends_here = outer[2]

    def _passes(
        self, first: Iterable[T], iteration: Iteration, next_pass: Callable[[], Iterable[T]] | None
    ) -> Iterator[Iterable[T]]:
        """The passes over the data that an epoch takes."""
        progress, is_first = self._progress, True
        more: Iterable[T] | None = first
        while more is not None:
            before = iteration.position
            yield more
            if iteration.queue:
                raise RuntimeError(ONE_AT_A_TIME)
            goes_on = progress.by_shares and not progress.epoch_complete
            goes_on = goes_on and (is_first or iteration.position > before)  # what is left of a pass may be nothing
            more, is_first = next_pass() if next_pass is not None and goes_on else None, False

    def _fetch(self, iteration: Iteration) -> None:
        """Give the loop a batch. The one that it works on may be another, where it may look ahead."""
        self.latest_fetched = iteration.fetch()
        iteration.advance(self._begin, self._finish, begun=iteration.look_ahead.begun)

    def _wants_next(self, iteration: Iteration) -> bool:
        """The loop asks for another batch. Return True if it is known to take batches one by one from here on."""
        look_ahead = iteration.look_ahead
        # A loop that asks for the next batch works on the latest that it was given, or has done so.
        iteration.advance(self._begin, self._finish, begun=iteration.fetched, finished=look_ahead.wants_next())
        return look_ahead.settled and look_ahead.ahead == 0 and iteration.finished == iteration.fetched

    def _ends(self, events: EpochEvents | None) -> bool:
        """True where the epoch has its share of the progress, and the plan is not given up at the last moment."""
        if events is not None:
            events.before_end()
        return self._progress.epoch_complete

    def _begin(self, iteration: Iteration) -> None:
        if self.current.ends_step:
            self._step_samples = 0
        self.current = cut_size, num_samples, _, _ = iteration.next()
        self._iteration, progress = iteration, self._progress
        efficiency = 1.0 if progress.max_extra is None else self._sample_efficiencies[cut_size]
        before, after, self.ends_here = progress.count(
            cut_size, num_samples, iteration.epoch, iteration.position, efficiency
        )
        self.schedule_span = before, after
        if num_samples not in self.cut_sizes:  # later it may be a short last one that has as many
            self.cut_sizes[num_samples], self.longest = cut_size, max(num_samples, self.longest)
        if cut_size != self._told_size:
            self.ever_changed = self.ever_changed or cut_size != self._start
            self._tell_size(cut_size)
        self._step_samples += num_samples
        if self._on_schedule_moved is not None:
            self._on_schedule_moved(before, after)

    def _finish(self) -> None:
        if self.current.ends_step and not self._is_done:
            self._on_step_end(self._step_samples, self.current.cut_size, self.longest)
        self._is_done = False

    def finish(self) -> None:
        """Finish the current batch before the loop asks for the next, as where it does other work meanwhile."""
        if self.under_way and not self._is_done:
            self._finish()
            self._is_done = True

    def _tell_size(self, cut_size: int | None) -> None:
        self._told_size = cut_size
        if self._on_cut_size is not None:
            self._on_cut_size(cut_size)

    @property
    def _place(self) -> Place:
        return Place(
            self.current, self.schedule_span, self._step_samples, self._is_done, self._told_size,
            self._iteration, self._resume_at, self.ever_changed, self.longest, dict(self.cut_sizes),
        )  # fmt: skip

    def _go_back_to(self, place: Place) -> None:
        self.current, self.schedule_span, self._step_samples = place.current, place.schedule_span, place.step_samples
        self._iteration, self._resume_at = place.iteration, place.resume_at
        self._is_done = place.is_done or place.resume_at is not None  # the look has finished the saved run's batch
        self.ever_changed, self.longest, self.cut_sizes = place.ever_changed, place.longest, place.cut_sizes
        if place.told_size is not None:
            self._tell_size(place.told_size)

    def _end_epoch(self, *, counts: bool) -> None:
        self._tell_size(None)
        if counts and self.under_way:  # also where it was broken off
            self.epoch_samples = self.epoch_position
            self._progress.set_epoch(self._progress.epoch + 1)
        self._iteration, self._is_done = None, False

    def begin_anew(self) -> None:
        """Let the next iteration be a whole epoch, also where a state was saved in the middle of one."""
        self._resume_at, self._step_samples = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "current": self.current.cut, "schedule_span": list(self.schedule_span),
            "ever_changed": self.ever_changed, "longest": self.longest,
            "step_samples": self._step_samples, "epoch_position": self.epoch_position, "is_done": self._is_done,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        before, after = state["schedule_span"]
        self.current, self.schedule_span = BatchInfo(*state["current"]), (before, after)
        self.ever_changed, self.longest = state["ever_changed"], state["longest"]
        self._step_samples, self._iteration, self._is_done = state["step_samples"], None, state["is_done"]
        self._resume_at = state["epoch_position"] or None
