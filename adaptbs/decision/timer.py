"""When the next decision is due."""

from __future__ import annotations

from typing import Any

from ..types import NoiseScale

NEWS = 8  # new measurements that a decision may be made on before its turn
SOON = 0.1  # of the run, within which it is: a batch that stays too small costs most there
FAR = 4  # a batch this many times below the cautious noise scale, or below the next, need not wait for its turn
SMALL = 64  # samples


class DecisionTimer:
    """Counts what has come since the latest decision.

    Args:
        every: samples' worth from one decision to the next.

    Attributes:
        news: measurements since the latest decision.
        unseen: of them, those since they were last looked at.
    """

    def __init__(self, every: float) -> None:
        self._every, self._decided_at, self._waits = every, 0.0, False
        self.news = self.unseen = 0

    def measured(self) -> None:
        """Take note of a measurement."""
        self.news, self.unseen = self.news + 1, self.unseen + 1

    def is_turn(self, worth: float) -> bool:
        """Whether a decision is due where the run has come to `worth`: it is time, or it was and nothing was new."""
        return worth - self._decided_at >= self._every or (self._waits and self.news > 0)

    def decided(self, worth: float) -> None:
        """Take note of a decision made there."""
        self._decided_at, self._waits = worth, self.news == 0
        self.news = self.unseen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"decided_at": self._decided_at, "waits": self._waits, "news": self.news, "unseen": self.unseen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._decided_at, self._waits = state["decided_at"], state["waits"]
        self.news, self.unseen = state["news"], state["unseen"]


def is_urgent(estimate: NoiseScale | None, batch_size: int, progress: float) -> bool:
    """Whether enough news is reason for a decision: early in the run, and where the batch is far from its aim."""
    far = estimate is not None and estimate.cautious >= FAR * batch_size
    return far or progress < SOON or batch_size < SMALL
