"""When the next decision is due."""

from __future__ import annotations

import math
from typing import Any

from ..types import NoiseScale

NEWS = 8  # new measurements that a decision may be made on before its turn
SOON = 0.1  # share of the run within which it is: a batch that stays too small costs most there
FAR = 4  # a batch this many times below the noise scale, or below the next, need not wait for its turn
SMALL = 64  # samples


class DecisionTimer:
    """Counts what has come since the latest decision.

    Args:
        every: effective samples from one decision to the next.
        waits: True if the first measurement is reason enough for a decision.

    Attributes:
        every: effective samples from one decision to the next.
        due_at: effective samples at which the next decision is due.
        waits: True if a decision was due and nothing was new.
        silent: number of decisions in a row that found nothing new.
        new_measurements: measurements since the latest decision.
        unread_measurements: those of them that came since they were last looked at.
    """

    def __init__(self, every: float, waits: bool = False) -> None:
        self.every, self.due_at, self.waits, self.silent = every, every, waits, 0
        self._decided_at = 0.0  # effective samples; saved in place of `due_at`, from which it could not be had exactly
        self.new_measurements = self.unread_measurements = 0

    def plan(self, every: float) -> None:
        """Let decisions be so far apart from here on."""
        self.every, self.due_at = every, self._decided_at + every

    def measured(self) -> None:
        """Take note of a measurement."""
        self.new_measurements, self.unread_measurements = self.new_measurements + 1, self.unread_measurements + 1

    def looked(self) -> None:
        """Take note that the measurements so far have been looked at."""
        self.unread_measurements = 0

    def is_turn(self, effective_samples: float) -> bool:
        """True if a decision is due there: it is time, or it was time and nothing was new."""
        return effective_samples >= self.due_at or (self.waits and self.new_measurements > 0)

    def awaits(self, effective_samples: float, batch_size: int) -> tuple[int, float]:
        """Count the decisions in a row that wait for a measurement, and the next if the coming batch makes it due.

        Returns:
            Their number, and the effective samples from which on there is one more.
        """
        if self.new_measurements:
            return 0, math.inf
        due = effective_samples + batch_size >= self.due_at
        return self.silent + due, math.inf if due else self.due_at - batch_size

    def decided(self, effective_samples: float) -> None:
        """Take note of a decision made there."""
        self._decided_at, self.due_at = effective_samples, effective_samples + self.every
        self.waits = self.new_measurements == 0
        self.silent = self.silent + 1 if self.waits else 0
        self.new_measurements = self.unread_measurements = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "decided_at": self._decided_at, "waits": self.waits, "silent": self.silent,
            "new": self.new_measurements, "unread": self.unread_measurements,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decided_at, self.due_at = state["decided_at"], state["decided_at"] + self.every
        self.waits, self.silent = state["waits"], state["silent"]
        self.new_measurements, self.unread_measurements = state["new"], state["unread"]


def is_urgent(estimate: NoiseScale | None, batch_size: int, progress: float) -> bool:
    """True if new measurements are reason enough for a decision: early in the run, and where the batch is far off."""
    far = estimate is not None and estimate.cautious > 0 and estimate.believed >= FAR * batch_size
    return far or progress < SOON or batch_size < SMALL
