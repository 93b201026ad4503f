"""Lets WeightAveraging take in the model at the steps of the stock run, though batches skip some of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

ASKED = "should_update"


class AveragesByStep:
    """Asks each such callback about all steps of the stock run for which a batch stands, and not about the last alone.

    One that updates every ten steps does so after a batch that reaches or skips a tenth step, once.

    Args:
        callbacks: the Trainer's callbacks.
        step_before: returns the global step before the latest batch.
    """

    def __init__(self, callbacks: list[Any], step_before: Callable[[], int]) -> None:
        self._step_before = step_before
        self._callbacks = [each for each in callbacks if is_weight_averaging(each)]
        for callback in self._callbacks:
            setattr(callback, ASKED, partial(self._should_update, getattr(callback, ASKED)))

    def _should_update(
        self, asked: Callable[..., bool], step_idx: int | None = None, epoch_idx: int | None = None
    ) -> bool:
        if step_idx is None:
            return asked(step_idx=step_idx, epoch_idx=epoch_idx)
        first = min(self._step_before(), step_idx)  # a step's index is the number of steps before it
        return any(asked(step_idx=step, epoch_idx=epoch_idx) for step in range(first, step_idx + 1))

    def leave(self) -> None:
        """Give the callbacks their own method back."""
        for callback in self._callbacks:
            vars(callback).pop(ASKED, None)


def is_weight_averaging(callback: Any) -> bool:
    """True of Lightning's WeightAveraging and of its subclasses, under either name of the library."""
    return any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__)
