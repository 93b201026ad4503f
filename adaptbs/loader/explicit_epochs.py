"""Moves the numbers that a loop gives to its scheduler to where the fixed run's would be."""

from __future__ import annotations

import math
from typing import Any

CLOSE = 1e-6  # relative; sums of floats come this near to each other
FELL_BACK = 2  # batches: a number that is this far behind at an epoch's begin is not the fixed run's


class ExplicitEpochs:
    """Moves an explicit epoch, or a count of updates, on to where the fixed run's would be.

    `scheduler.step(epoch + i / iters)` counts the loop's own batches. Once they are larger there are fewer, and the
    number lags behind. It is moved on by what the fixed run would have counted more: by `unit` for each batch. The
    unit is what the number grows by from one batch to the next. A number that already follows the samples, or that
    counts epochs, is left alone. One that begins each epoch at `epoch * len(loader)`, as in timm's train.py, falls back
    where the loader has become shorter. It goes on from where it was.

    Example: after its first batches a loop says 0.0, 0.1, 0.2 and 0.3. The unit is 0.1, as there are ten batches to an
    epoch of the fixed run. If the third batch is twice as large, it stands for two: 0.2 becomes 0.3, and 0.3 becomes
    0.4.

    Attributes:
        unit: what one batch adds to the number; None while it is not known.
    """

    def __init__(self) -> None:
        self._said: float | None = None
        self.unit: float | None = None
        self._lead = 0.0  # what is added to the number
        self._first: float | None = None  # the first number, which a loop that counts within each epoch comes back to
        self._place = 0.0  # the latest number, moved on
        self._iteration = 0  # that it was said in last
        self._passed = self._batches = 0  # since it was said last: batches of the fixed run, and batches delivered

    def moved(self, passed: int, batches: int) -> None:
        """Count batches since the latest call: those of the fixed run, and those delivered."""
        self._passed, self._batches = self._passed + passed, self._batches + batches

    def place(self, said: float, iteration: int, ahead: int) -> float:
        """The number that the fixed run would have come to.

        Args:
            said: the number that the loop gave.
            iteration: number of the latest iteration over the loader.
            ahead: batches by which the fixed run is ahead of the loop in this epoch.
        """
        before, self._said = self._said, said
        self._first = said if self._first is None else self._first
        begins, self._iteration = iteration != self._iteration, iteration
        passed, batches = self._passed, self._batches
        self._passed = self._batches = 0
        if before is not None and batches:
            grown_by = said - before
            if self.unit is None and not begins and grown_by > 0:
                self.unit = grown_by / batches
            if self.unit is not None:
                if math.isclose(grown_by, self.unit * batches, rel_tol=CLOSE):
                    self._lead += self.unit * (passed - batches)
                elif begins and not math.isclose(grown_by, self.unit * passed, rel_tol=CLOSE):
                    self._lead = self.unit * ahead  # it counts within each epoch
                    expected = self._place + self.unit * passed
                    if said > self._first and said + self._lead < expected - FELL_BACK * self.unit:
                        self._lead = expected - said
        self._place = place = said + self._lead
        return int(place + CLOSE) if isinstance(said, int) else place

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
