"""Notices a loop of which it is not known which batch its steps belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ..run import LookAhead, NoLookAhead, TrainingRun
from .drawn import DrawnByCount, frame
from .latest_input import LatestInput
from .run_length import RunLength
from .streams import StreamCheck

WHICH_BATCH = "not known which batch a step belongs to"  # reason to hold the batch

STEPS_AFTER = 1  # an iteration, on what is left of an accumulated step; one more for a batch that was fetched ahead

THREAD = (
    "the loader is iterated in one thread and the optimizer is stepped in another, as by a prefetcher in the "
    "background. Which batch a step belongs to is not known, so the batch is held and nothing is measured. Leave the "
    "prefetcher out: num_workers= and pin_memory= of the loader fetch ahead."
)
DEEP = (
    "%d batches had been fetched when the first backward pass came: the loop fetches several ahead, or passes some "
    "over. Which batch a step belongs to is not known, so the batch is held. Fetch at most one ahead: num_workers= and "
    "prefetch_factor= of the loader do the rest. To go on within an epoch use loader.load_state_dict()."
)
NO_DELIVERY = (
    "the optimizer is stepped on after the iteration over the loader has ended, as by itertools.cycle(loader), "
    "list(loader) or a loop over other data. Which batch a step belongs to is not known, so the batch is held. Begin "
    "an iteration for every pass, as in `while True: for batch in loader: ...`."
)
NOTHING_TRAINED = (
    "a pass over the loader has trained nothing, though an earlier one did, and %s. To look at the data use "
    "loader.plain_batches(), or switch gradients off. Another model, or another optimizer, needs a loader of its own."
)
NOT_COUNTED, COUNTS = "is no part of the run", "is the whole of an epoch, so it counts as one all the same"


class BatchOfStep:
    """Watches in which thread, and after which deliveries, the optimizer is stepped.

    Where it is not known which batch a step belongs to, the batch is held and that is said once. The hyperparameters
    then go by the number of rows that the model was called on, as far as batches with so many have been delivered.

    Args:
        run: the training run.
        length: its length.
        ranks: how many ranks share a batch.
        watched: returns a few parameters, by which a backward pass is noticed.

    Attributes:
        thread: the thread that iterates.
        trains_here: True if that is the thread that trains, as far as is known: it has built the loader, or a step was
            made in it.
        delivering: True while an iteration is under way, and before the first.
        is_lost: True once it is not known which batch a step belongs to.
        is_clear: True once a step has shown all that steps of this iteration can show. Until then call `stepped` at
            each.
        stream: compares the streams of a batch and its step.
        drawn: notices a loop that counts the batches that it draws.
        ever_trained: True once an iteration has trained.
    """

    def __init__(
        self, run: TrainingRun, length: RunLength, ranks: int, watched: Callable[[], Sequence[Tensor]]
    ) -> None:
        self._run, self._length, self._ranks, self._watched = run, length, ranks, watched
        self._after: list[Any] = []  # hooks, from the end of an iteration that looked ahead to a backward pass
        self.stream, self.drawn = StreamCheck(run), DrawnByCount(run)
        self._built_in = self.thread = get_ident()
        self.trains_here, self.delivering, self.is_lost, self.is_clear = True, True, False, False
        self._steps_after = 0  # the end of the latest iteration
        self._iterations = 0
        self._look_ahead: LookAhead = NoLookAhead()
        self._called = LatestInput()
        self._handle: Any = None
        self._warned = self.ever_trained = self._said = False
        self._asked: int | None = None  # number of the epoch that the loop has asked for, by `loader.epochs`
        self._lost_by: str | None = None  # the warning that fits
        self._is_plain = False  # True where the loop has trained in the latest iteration, and not after its end

    def follow(self, look_ahead: LookAhead) -> None:
        """Follow the next iteration, in which the loop takes its batches in this way."""
        self._look_ahead, self.is_clear = look_ahead, False
        self._worked()

    @property
    def is_still_ahead(self) -> bool:
        """True if the latest iteration has ended, and the loop has not worked on its last batch, fetched ahead."""
        return bool(self._after)

    def _worked(self, *_: object) -> None:
        """The loop has worked on the batch that it fetched ahead: wait for that no longer."""
        for handle in self._after:
            handle.remove()
        self._after = []

    @property
    def has_trained(self) -> bool:
        """True once a backward pass or a step has been made in the latest iteration."""
        return self._look_ahead.settled

    def asks_for(self, epoch: int) -> None:
        """The loop asks for this epoch, by `loader.epochs`."""
        self._asked = epoch

    def is_a_look(self, epoch: int, at_its_end: bool, trained: bool) -> bool:
        """True if an iteration that is over is no part of the run, because its batches were only looked at.

        One that has delivered all of its batches may also be an epoch in which another model has its turn. It is a look
        if the epoch asked for has trained in another iteration, or where none is asked for.

        Args:
            epoch: number of the epoch that the iteration began with.
            at_its_end: True if all of its batches have been delivered.
            trained: True if a backward pass or a step was made in it.
        """
        return not trained and (not at_its_end or (self.ever_trained and self._asked != epoch))

    def state_dict(self) -> dict[str, Any]:
        return {"ever_trained": self.ever_trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ever_trained = state["ever_trained"]

    def begin_iteration(self) -> None:
        """An iteration begins, in this thread."""
        self._iterations += 1
        self.drawn.begins(frame(3))  # beyond the events and the generator: the loop that asks for its first batch
        self.is_clear = False
        self.stream.begin()
        if self._lost_by is NO_DELIVERY and self._is_plain:
            self._find()  # as after a test that trains on one batch
        self._steps_after, self.delivering = 0, True
        if self.thread != get_ident():
            self.thread = get_ident()
            self.trains_here = self.thread == self._built_in
        if not self.trains_here:  # until a step is made here: nothing may be measured before
            self._run.controller.holds.add(WHICH_BATCH)

    def end_iteration(self, at_its_end: bool, trained: bool, counts: bool) -> None:
        """An iteration is over, or was broken off.

        Args:
            at_its_end: True if all of its batches have been delivered.
            trained: True if a backward pass or a step was made in it.
            counts: True if its batches are part of the run.
        """
        self._iterations -= 1
        self.drawn.ends()
        if at_its_end:
            self._length.trains()
        self._is_plain = trained
        if at_its_end and not self._iterations and self.ever_trained and not self._is_plain and not self._said:
            self._said = True
            if self._run.controller.rules.may_change:
                self._run.controller.holds.warn(NOTHING_TRAINED, COUNTS if counts else NOT_COUNTED)
        self.ever_trained |= self._is_plain
        if at_its_end and not self._iterations and self._look_ahead.ahead == 1:
            self._after = [
                p.register_post_accumulate_grad_hook(self._worked)  # type: ignore[no-untyped-call]
                for p in self._watched()
                if p.requires_grad and p.is_leaf
            ]
        self.delivering, self.is_clear = self._iterations > 0, False

    def look_ahead(self, unclear: bool, fetched: int | None) -> None:
        """Lose or find the batch by what a backward pass has shown; see `DetectLookAhead`."""
        self.drawn.trains()
        self._length.trains()
        if unclear and fetched is not None:
            self._lose(DEEP, fetched)
        elif unclear:
            self._run.controller.holds.add(WHICH_BATCH)
        elif self.trains_here and self._lost_by in (None, DEEP):
            self._find()

    def stepped(self) -> None:
        """The optimizer takes a step."""
        self.drawn.trains()  # where an adapter states the look-ahead, no backward pass is watched
        if self.stream.waits:
            self.stream.stepped()
        elsewhere = not is_compiling() and get_ident() != self.thread  # a compiled step cannot ask
        if elsewhere or not self.trains_here or not self.delivering:
            self._step_elsewhere()
        known = self._look_ahead.settled and self.trains_here and self.delivering and not self.is_lost
        self.is_clear = known and not elsewhere and not self.stream.asks

    def _step_elsewhere(self) -> None:
        """The optimizer takes a step in another thread, or when nothing is being delivered."""
        self._worked()
        if not is_compiling() and get_ident() != self.thread:
            self._lose(THREAD)
        elif not self.delivering:
            self._steps_after += 1
            if self._steps_after > STEPS_AFTER + (self._look_ahead.ahead or 0):
                self._is_plain = False
                self._lose(NO_DELIVERY)
        elif not self.trains_here:
            self.trains_here = True
            if not self.is_lost:
                self._run.controller.holds.remove(WHICH_BATCH)

    def cut_size(self) -> int:
        """The size that the batch of this step was cut at, as far as the model's input tells, samples."""
        tracker, shapes = self._run.tracker, self._called.shapes
        current = tracker.current.cut_size
        return tracker.cut_sizes.get(shapes[0][0] * self._ranks, current) if shapes else current

    def _lose(self, warning: str, *values: object) -> None:
        self._run.controller.holds.add(WHICH_BATCH)
        if self._handle is None:
            self._handle = self._run.model.register_forward_pre_hook(self._called, with_kwargs=True)
        self.is_lost, self.is_clear, self._lost_by = True, False, self._lost_by or warning
        if not self._warned:
            self._warned = True
            self._run.controller.holds.warn(warning, *values)

    def _find(self) -> None:
        """Hold no longer: a loop that has passed batches over once may train on each in another iteration."""
        self._run.controller.holds.remove(WHICH_BATCH)
        self.close()
        self.is_lost, self._lost_by = False, None

    def close(self) -> None:
        """Watch the model no longer."""
        self._worked()
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
