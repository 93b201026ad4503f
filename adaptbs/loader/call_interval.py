"""Batches of the fixed run per step of the schedule, found from the loop's calls or stated."""

from __future__ import annotations

from typing import Any


class CallInterval:
    """Finds how many batches of the fixed run a step of the schedule stands for, from the loop's calls.

    Two calls in a row after equally many batches show it. A GradScaler leaves some calls out, and an epoch's last
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
        """Learn from a call, given the batches that were delivered since the call before."""
        self.calls += 1
        if not batches:
            self._at_once += 1
            return
        gap = batches / self._at_once
        self.known = self.calls > 1 and gap == self.gap
        self.gap, self._at_once = gap, 1

    def learn(self, gap: int) -> None:
        """Take `gap` as known from here on."""
        self.gap, self.known, self.calls = float(gap), True, self.calls + 1

    def ratio(self, passed: int, batches: int) -> float:
        """Steps that a call stands for while the interval is not known: the fixed run's batches of each batch.

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


class StatedInterval:
    """The place of the fixed run's schedule, where a library's adapter states its steps for each optimizer step.

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
    def steps(self) -> int:
        """Steps of the schedule for each optimizer step."""
        return self._steps

    def of_steps(self, batches: int) -> int:
        """Steps of the schedule for the optimizer steps that are made of so many batches, whatever their size."""
        return self._steps * -(-batches // self._per_step)

    @property
    def gap(self) -> float:
        """Batches of the fixed run for a step of the schedule."""
        return self._per_step / self._steps

    def at(self, batches: int) -> int:
        """Steps that the fixed run has made after `batches` of its batches."""
        epochs, within = divmod(batches, self._epoch_steps)
        return self._steps * (epochs * self._of_epoch + within // self._per_step)
