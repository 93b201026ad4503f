"""Tells an epoch of the run from an iteration that only looked at batches."""

from __future__ import annotations

from typing import Any

from ..run import TrainingRun

NOTHING_TRAINED = (
    "a pass over the loader has trained nothing, though an earlier one did, and %s. To look at the data use "
    "loader.plain_batches(), or switch gradients off. Another model, or another optimizer, needs a loader of its own."
)
NOT_COUNTED, COUNTS = "is no part of the run", "is the whole of an epoch, so it counts as one all the same"


class Looks:
    """Tells an epoch of the run from an iteration that only looked at batches, and is no part of it.

    | trained | delivered all batches | an iteration has trained before | it is |
    |---|---|---|---|
    | yes | | | an epoch |
    | no | no | | a look, as `next(iter(loader))` |
    | no | yes | no | an epoch: one in which something is collected, say, before training |
    | no | yes | yes | a look, unless `loader.epochs` has asked for this epoch: then another model has its turn in it |

    Args:
        run: the training run.

    Attributes:
        ever_trained: True once an iteration has trained.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.ever_trained = self._said = False
        self._asked: int | None = None  # number of the epoch that `loader.epochs` was asked for last

    def asks_for(self, epoch: int) -> None:
        """The loop asks for this epoch, by `loader.epochs`."""
        self._asked = epoch

    def is_a_look(self, epoch: int, at_its_end: bool, trained: bool) -> bool:
        """True if an iteration that is over is no part of the run.

        Args:
            epoch: number of the epoch that the iteration began with.
            at_its_end: True if all of its batches have been delivered.
            trained: True if a backward pass or a step was made in it.
        """
        return not trained and (not at_its_end or (self.ever_trained and self._asked != epoch))

    def ended(self, trained: bool, *, is_whole: bool, counts: bool) -> None:
        """An iteration is over. Warn, once, of a whole pass that has trained nothing although another one has.

        Args:
            trained: True if a backward pass or a step was made in it.
            is_whole: True if all of its batches have been delivered, and no iteration is under way around it.
            counts: True if its batches are part of the run.
        """
        if is_whole and not trained and self.ever_trained and not self._said:
            self._said = True
            if self._run.controller.rules.may_change:
                self._run.controller.holds.warn(NOTHING_TRAINED, COUNTS if counts else NOT_COUNTED)
        self.ever_trained = self.ever_trained or trained

    def state_dict(self) -> dict[str, Any]:
        return {"ever_trained": self.ever_trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ever_trained = state["ever_trained"]
