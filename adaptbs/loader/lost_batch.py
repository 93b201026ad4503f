"""Holds the batch while it is not known which batch a step belongs to."""

from __future__ import annotations

from typing import Any
from weakref import finalize

from ..run import TrainingRun
from .latest_input import LatestInput

WHICH_BATCH = "not known which batch a step belongs to"  # reason to hold the batch


class LostBatch:
    """The hyperparameters of a step whose batch is not known, and a warning of that, which is said once.

    They go by the number of rows that the model was called on, as far as batches with so many have been delivered.

    Example: batches were cut at 32 and then at 64 samples, and a loop shuffles what `list(loader)` has given it. A step
    after a call of the model on 32 rows has the hyperparameters of 32. One on 20 rows, that no batch has had, has those
    of the latest size.

    Args:
        run: the training run.
        ranks: how many ranks share a batch.

    Attributes:
        by: the warning that says how the batch was lost; None while it is known.
    """

    def __init__(self, run: TrainingRun, ranks: int) -> None:
        self._run, self._ranks = run, ranks
        self.by: str | None = None
        self._warned = False
        self._called = LatestInput()
        self._handle: Any = None

    def lose(self, warning: str, *values: object) -> None:
        """Hold the batch from here on, and say why if nothing has been said yet."""
        self._run.controller.holds.add(WHICH_BATCH)
        if self._handle is None:
            handle = self._run.model.register_forward_pre_hook(self._called, with_kwargs=True)
            self._handle = finalize(self, handle.remove)
        self.by = self.by or warning
        if not self._warned:
            self._warned = True
            self._run.controller.holds.warn(warning, *values)

    def find(self) -> None:
        """Hold no longer: a loop that has passed batches over once may train on each in another iteration."""
        self._run.controller.holds.remove(WHICH_BATCH)
        self.close()
        self.by = None

    def cut_size(self) -> int:
        """The size that the batch of this step was cut at, as far as the model's input tells, samples."""
        tracker, shapes = self._run.tracker, self._called.shapes
        current = tracker.current.cut_size
        return tracker.cut_sizes.get(shapes[0][0] * self._ranks, current) if shapes else current

    def close(self) -> None:
        """Watch the model no longer."""
        if self._handle is not None:
            self._handle()
        self._handle = None
