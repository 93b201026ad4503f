"""Notices a loop or a Learner that trains on batches of the first size alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .look_ahead import on_backward
from .training_run import TrainingRun

PASSED = "batches of another size are passed over"  # reason to hold the batch
PATIENCE = 3  # optimizer steps' worth of batches, or iterations; a loss that is not finite may be passed over too
WARNING = (
    "since the batch grew from %d to %d samples nothing has been trained on, as by `if len(x) != batch_size: continue` "
    "in the loop, or break, or by a callback of a Learner that raises CancelBatchException. A larger batch would train "
    "nothing, so the batch goes back to %d and is held. Leave that line out (drop_last=True leaves out the short batch "
    "at the end of each pass); or say max_batch_size=%d."
)


class PassedOver:
    """Watches whether the loop trains on the first batches of another size, and if not goes back to the first size.

    A backward pass shows it, or a step of the optimizer.

    Args:
        run: the training run.
        watched: returns a few parameters, by which a backward pass is noticed.
        is_due: False if the batch cannot change, or several processes would have to go back together.

    Attributes:
        is_due: True until it is known.
        found: True once it is known that it does not.
    """

    def __init__(self, run: TrainingRun, watched: Callable[[], Sequence[Tensor]], *, is_due: bool) -> None:
        self._run, self._watched, self.is_due = run, watched, is_due
        self.found = False
        self._handles: list[Any] = []
        self._in_vain = 0  # batches, and iterations as so many as an optimizer step has

    def look(self, has_trained: bool) -> None:
        """Look at what the loop has done since the latest batch, where another size has been delivered.

        Args:
            has_trained: True if the loop has trained in this iteration.
        """
        if not self._handles:
            self._handles = on_backward(self._watched(), self.trains)
        elif has_trained:
            self._passes_over(1)

    def ends(self, has_trained: bool) -> None:
        """An iteration is over, or was broken off."""
        if self.is_due and self._handles and not has_trained:
            self._passes_over(self._run.controller.batches_per_step)

    def trains(self, *_: object) -> None:
        """The loop makes a backward pass or a step."""
        self.is_due = False
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _passes_over(self, batches: int) -> None:
        controller = self._run.controller
        self._in_vain += batches
        if self._in_vain >= PATIENCE * controller.batches_per_step:
            self.is_due, self.found = False, True
            self.close()
            first, now = (size // controller.batches_per_step for size in (controller.start_batch_size, self._size))
            controller.holds.doubt(PASSED, WARNING, first, now, first, first)
            controller.no_more_than(first, "decision", PASSED)

    @property
    def _size(self) -> int:
        return self._run.tracker.current.cut_size
