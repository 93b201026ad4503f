"""The unit that a loop's calls of its scheduler count: batches, samples, epochs, numbers of its own, or as stated."""

from __future__ import annotations

import math
from typing import Any

CLOSE = 1e-6  # relative; sums of floats come this near to each other


class Cadence:
    """How many batches of the fixed run a step of the schedule stands for, as the loop's calls show it.

    Two calls after equally many batches in a row show it. A GradScaler leaves some calls out, and an epoch's last
    batches may bring one early.

    Attributes:
        gap: batches of the fixed run for a step; the latest seen while it is not `known`.
        known: True once it has been seen twice in a row.
        calls: calls that have been looked at.
    """

    def __init__(self) -> None:
        self.gap, self.known, self.calls = 1.0, False, 0
        self._at_once = 1  # calls since the batch changed
        self._latest = 1.0  # steps of the latest call after a batch

    def look(self, batches: int) -> None:
        """Take note of a call, from the batches that were delivered since the call before."""
        self.calls += 1
        if not batches:
            self._at_once += 1
            return
        gap = batches / self._at_once
        self.known = self.calls > 1 and gap == self.gap
        self.gap, self._at_once = gap, 1

    def learn(self, gap: int) -> None:
        """Know it from here on."""
        self.gap, self.known, self.calls = float(gap), True, self.calls + 1

    def ratio(self, passed: int, batches: int) -> float:
        """Steps that a call stands for while the cadence is not known: the fixed run's batches of each batch.

        Args:
            passed: batches of the fixed run since the call before.
            batches: batches delivered meanwhile.
        """
        if batches:
            self._latest = passed / batches
        return self._latest

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("gap", "known", "calls", "_at_once", "_latest")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class StatedCadence:
    """The steps of the schedule that a library makes for each optimizer step, as its adapter states them.

    Args:
        steps: that number.
        batches_per_step: batches of an optimizer step, on each rank.
        epoch_steps: batches of an epoch of the fixed run.
        of_epoch: optimizer steps that the loop makes in it. None: what an epoch's end leaves of one makes one too.
    """

    def __init__(self, steps: int, batches_per_step: int, epoch_steps: int, of_epoch: int | None = None) -> None:
        self._steps, self._per_step, self._epoch_steps = steps, batches_per_step, epoch_steps
        self._of_epoch = -(-epoch_steps // batches_per_step) if of_epoch is None else of_epoch

    @property
    def gap(self) -> float:
        """Batches of the fixed run for a step of the schedule."""
        return self._per_step / self._steps

    def at(self, batches: int) -> int:
        """Steps that the fixed run has made after so many of its batches."""
        epochs, within = divmod(batches, self._epoch_steps)
        return self._steps * (epochs * self._of_epoch + within // self._per_step)


class ExplicitEpochs:
    """Moves an explicit epoch, or a count of updates, on to where the fixed run's would be.

    `scheduler.step(epoch + i / iters)` counts the loop's own batches. Once they are larger there are fewer, and the
    number lags behind. It is moved on by what the fixed run would have counted more: by `unit` for each batch. The
    unit is what the number grows by from one batch to the next. A number that already follows the samples, or that
    counts epochs, is left alone.

    Attributes:
        unit: what one batch adds to the number; None while it is not known.
    """

    def __init__(self) -> None:
        self._said: float | None = None
        self.unit: float | None = None
        self._lead = 0.0  # what is added to the number
        self._iteration = 0  # that it was said in last
        self._passed = self._batches = 0  # since it was said last: batches of the fixed run, and batches delivered

    def moved(self, passed: int, batches: int) -> None:
        """Take note of batches since the latest call: those of the fixed run, and those delivered."""
        self._passed, self._batches = self._passed + passed, self._batches + batches

    def place(self, said: float, iteration: int, ahead: int) -> float:
        """The number that the fixed run would have come to.

        Args:
            said: the number that the loop gave.
            iteration: number of the latest iteration over the loader.
            ahead: batches by which the fixed run is ahead of the loop in this epoch.
        """
        before, self._said = self._said, said
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
        place = said + self._lead
        return int(place + CLOSE) if isinstance(said, int) else place

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
