"""Reasons to keep the batch as it is."""

from __future__ import annotations

from ..types import Decision

NOT_SAMPLES = "rows are not samples"  # reason to hold it where the noise scale is that of something else
NOT_CUT = "batch cannot be cut"  # reason to hold it where it would have to be


class Holds:
    """Holds the batch for as long as something that it depends on is not clear. A held run is the run without adaptbs.

    A face adds a reason when a doubt arises, and removes it when it is settled. Adding one twice is adding it once.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, None] = {}  # keeps their order

    def add(self, reason: str) -> None:
        """Hold the batch for this reason too."""
        self._reasons.setdefault(reason)

    def remove(self, reason: str) -> None:
        """Hold the batch no longer for this reason."""
        self._reasons.pop(reason, None)

    @property
    def reason(self) -> str | None:
        """The oldest reason; None where the batch is not held."""
        return next(iter(self._reasons), None)

    def state_dict(self) -> list[str]:
        return list(self._reasons)

    def load_state_dict(self, state: list[str]) -> None:
        """Hold for the reasons of the saved run, too. A face removes those that it sees to be settled."""
        for reason in state:
            self.add(reason)

    def apply(self, decision: Decision, batch_size: int) -> Decision:
        """The decision, or that to keep `batch_size`, samples."""
        return Decision(batch_size, self.reason) if self.reason is not None else decision
