"""Notices a loop of which it is not known which batch its steps belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident

from torch import Tensor
from torch.compiler import is_compiling

from ..run import LookAhead, NoLookAhead, PassedOver, TrainingRun
from .drawn import DrawnByCount, frame
from .last_batch import LastBatch
from .looks import Looks
from .lost_batch import WHICH_BATCH, LostBatch
from .run_length import RunLength
from .streams import StreamCheck

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


class BatchOfStep:
    """Watches in which thread, and after which deliveries, the optimizer is stepped.

    Where that does not show which batch a step belongs to, the batch is lost; see `LostBatch`. There are three ways to
    lose it: the steps are made in another thread than the iteration (`THREAD`), several batches were fetched before the
    first backward pass (`DEEP`), or steps go on after the iteration has ended (`NO_DELIVERY`). The batch is found again
    where a later iteration trains as is expected, but not in another thread.

    Args:
        run: the training run.
        length: its length.
        ranks: how many ranks share a batch.
        watched: returns a few parameters, by which a backward pass is noticed.

    Attributes:
        trains_here: True if the thread that iterates is the one that trains, as far as is known: it has built the
            loader, or a step was made in it.
        delivering: True while an iteration is under way, and before the first.
        is_clear: True once a step has shown all that steps of this iteration can show. Until then call `stepped` at
            each.
        lost: holds the batch of steps whose batch is not known.
        looks: tells epochs from looks at batches.
        last_batch: waits for the loop to work on a last batch that it fetched ahead.
        stream: compares the streams of a batch and its step.
        drawn: notices a loop that counts the batches that it draws.
        passed_over: notices a loop that trains on batches of the first size alone.
    """

    def __init__(
        self, run: TrainingRun, length: RunLength, ranks: int, watched: Callable[[], Sequence[Tensor]]
    ) -> None:
        self._run, self._length, self._watched = run, length, watched
        self.lost, self.looks, self.last_batch = LostBatch(run, ranks), Looks(run), LastBatch()
        self.stream, self.drawn = StreamCheck(run), DrawnByCount(run)
        self.passed_over = PassedOver(run, watched, is_due=run.controller.rules.may_change and ranks == 1)
        self._built_in = self._thread = get_ident()  # the latter is the one that iterates
        self.trains_here, self.delivering, self.is_clear = True, True, False
        self._steps_after = 0  # the end of the latest iteration
        self._iterations = 0  # under way
        self._look_ahead: LookAhead = NoLookAhead()
        self._is_plain = False  # True where the loop has trained in the latest iteration, and not after its end

    def follow(self, look_ahead: LookAhead) -> None:
        """Follow the next iteration, in which the loop takes its batches in this way."""
        self._look_ahead, self.is_clear = look_ahead, False
        self.last_batch.stop()

    @property
    def has_trained(self) -> bool:
        """True once a backward pass or a step has been made in the latest iteration."""
        return self._look_ahead.settled

    def begin_iteration(self) -> None:
        """An iteration begins, in this thread."""
        self._iterations += 1
        self.drawn.begins(frame(3))  # beyond the events and the generator: the loop that asks for its first batch
        self.is_clear = False
        self.stream.begin()
        if self.lost.by is NO_DELIVERY and self._is_plain:
            self._find()  # as after a test that trains on one batch
        self._steps_after, self.delivering = 0, True
        if self._thread != get_ident():
            self._thread = get_ident()
            self.trains_here = self._thread == self._built_in
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
        if at_its_end and counts:
            self._length.trains()
        self._is_plain = trained
        is_whole = at_its_end and not self._iterations
        self.passed_over.ends(trained)
        self.looks.ended(trained, is_whole=is_whole and not self.passed_over.found, counts=counts)
        if is_whole and self._look_ahead.ahead == 1:
            self.last_batch.wait(self._watched())
        self.delivering, self.is_clear = self._iterations > 0, False

    def look_ahead(self, unclear: bool, fetched: int | None) -> None:
        """Lose or find the batch by what a backward pass has shown; see `DetectLookAhead`."""
        self.drawn.trains()
        self._length.trains()
        if unclear and fetched is not None:
            self._lose(DEEP, fetched)
        elif unclear:
            self._run.controller.holds.add(WHICH_BATCH)
        elif self.trains_here and self.lost.by in (None, DEEP):
            self._find()

    def look_at_another_size(self) -> None:
        """A batch is delivered, and one has been of another size than the first: see if such are trained on."""
        self.is_clear = False
        self.passed_over.look(self.has_trained)

    def stepped(self) -> None:
        """The optimizer takes a step."""
        self.drawn.trains()  # where an adapter states the look-ahead, no backward pass is watched
        if self.stream.waits:
            self.stream.stepped()
        if self._run.tracker.ever_changed:
            self.passed_over.trains()
        elsewhere = not is_compiling() and get_ident() != self._thread  # a compiled step cannot ask
        if elsewhere or not self.trains_here or not self.delivering:
            self._step_elsewhere(elsewhere)
        known = self._look_ahead.settled and self.trains_here and self.delivering and self.lost.by is None
        self.is_clear = known and not elsewhere and not self.stream.asks

    def _step_elsewhere(self, in_another_thread: bool) -> None:
        """The optimizer takes a step in another thread, or when nothing is being delivered."""
        self.last_batch.stop()
        if in_another_thread:
            self._lose(THREAD)
        elif not self.delivering:
            self._steps_after += 1
            if self._steps_after > STEPS_AFTER + (self._look_ahead.ahead or 0):
                self._is_plain = False
                self._lose(NO_DELIVERY)
        elif not self.trains_here:
            self.trains_here = True
            if self.lost.by is None:
                self._run.controller.holds.remove(WHICH_BATCH)

    def _lose(self, warning: str, *values: object) -> None:
        self.lost.lose(warning, *values)
        self.is_clear = False

    def _find(self) -> None:
        self.last_batch.stop()
        self.lost.find()

    def close(self) -> None:
        """Watch no longer."""
        self.passed_over.close()
        self.last_batch.stop()
        self.lost.close()
