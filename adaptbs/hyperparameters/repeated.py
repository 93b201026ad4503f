"""Sets the hyperparameters of a step again for the next one, with new learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .bias_correction import Accumulated, StepCount


class Repeated:
    """The hyperparameters that one step has set, kept for the following steps at the same batch.

    They serve while no bias has to be corrected and nothing has changed in the groups but their learning rates. That is
    so in most steps of most runs. It saves time where time counts: at every step, with the processor's caches full of
    the model's data.

    Args:
        unscaled: pairs of a group and the values it had before the step. The scaler restores a step from this list.
        getters: one for each group. It reads the values that the new ones depend on, except the learning rate.
        counted: groups whose step counts stand for the optimizer's, and the accumulated sums of their averages.
        state: state of the optimizer.
        lr_factor: the factor of the learning rates in that step.
        follows_rate: True if other values depend on that factor.
    """

    __slots__ = ("_counted", "_follows_rate", "_groups", "_lr_factor", "_state")

    def __init__(
        self,
        unscaled: Sequence[tuple[dict[str, Any], dict[str, Any]]],
        getters: Sequence[Callable[[Mapping[str, Any]], Any]],
        counted: Sequence[tuple[int, StepCount, Accumulated]],
        state: Mapping[Any, Any],
        *,
        lr_factor: float,
        follows_rate: bool,
    ) -> None:
        self._counted, self._state = counted, state
        self._lr_factor, self._follows_rate = lr_factor, follows_rate
        self._groups = [
            (group, getter, getter({**group, **found}), found, {name: group[name] for name in found})
            for (group, found), getter in zip(unscaled, getters, strict=True)
        ]

    def set_again(self, groups: Sequence[dict[str, Any]], lr_factor: float) -> bool:
        """Set the same in these groups, at this factor of the learning rate.

        Returns:
            False where that will not do. Then nothing is set.
        """
        if len(groups) != len(self._groups):
            return False
        if lr_factor != self._lr_factor and (self._follows_rate or self._lr_factor == 1 or lr_factor == 1):
            return False
        for i, count, accumulated in self._counted:
            if count.read(self._state, groups[i], wait=False) != accumulated.steps + 1:
                return False
            accumulated.seen_one_more()
        for group, (known, getter, had, found, values) in zip(groups, self._groups, strict=False):
            if group is not known or getter(group) != had:
                self._undo(known)
                return False
            if "lr" in found:
                found["lr"] = lr = group["lr"]
                values["lr"] = lr * lr_factor
            group.update(values)
        return True

    def _undo(self, first: dict[str, Any]) -> None:
        """Put the groups before this one back."""
        for group, _, _, found, _ in self._groups:
            if group is first:
                return
            group.update(found)
