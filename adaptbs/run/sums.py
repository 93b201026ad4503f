"""Holds the batch where the loss is known to sum over it: the rules for the learning rate are those of a mean."""

from __future__ import annotations

from ..gradients import NoiseMeter
from .controller import Controller

SUMS = "loss sums over the batch"  # reason to hold it

WARNING = (
    "the loss sums over its samples instead of taking their mean, so its gradient grows with the batch by itself, and "
    "the batch is held. Divide the loss by the number of its samples (reduction='mean'); SGD then wants %d times the "
    "learning rate, as that is the batch that it was found at."
)


class SumCheck:
    """Holds the batch where the loss is a sum over its samples and that would make a larger batch another run.

    A sum's gradient is n times the mean's, so a learning rate that follows the batch would count it twice. An optimizer
    that divides by the gradient's size does not notice, and what is measured is divided by n. Then nothing is held.

    Args:
        controller: the run's.
        adaptive: True if the optimizer divides by the gradient's size.
        stated: True if the user has said what becomes of the learning rate, by a function or by `transfer=`.
        reduction: what the loss function says of itself, "mean" or "sum"; None: nothing, or it is not known.
    """

    def __init__(self, controller: Controller, *, adaptive: bool, stated: bool, reduction: str | None) -> None:
        self._controller, self._adaptive = controller, adaptive
        self._is_done = stated or reduction is not None
        if reduction == "sum" and not stated and not adaptive:
            self._hold()

    def look(self, meter: NoiseMeter) -> None:
        """Hold the batch if the first measurements have shown that the loss is a sum."""
        if not self._is_done and meter.sums is not None:
            self._is_done = True
            if meter.sums and not self._adaptive:
                self._hold()

    def go_on(self, holds: list[str]) -> None:
        """Go on as a saved run that was held for these reasons."""
        if SUMS in holds:
            self._is_done = True
            self._controller.hold(SUMS)

    def _hold(self) -> None:
        self._controller.hold(SUMS)
        self._controller.holds.warn(WARNING, self._controller.rules.base_batch_size)
