"""Sets the hyperparameters of a step again for the next one, with new learning rates and betas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bias_correction import settled_betas
from .change import Change
from .group_plans import BETAS, GroupPlan
from .steps_seen import Leader
from .transfer import betas_of


class Repeated:
    """The hyperparameters that one step has set, kept for the following steps at the same batch.

    They serve while no bias has to be corrected and nothing has changed in the groups but their learning rates and
    betas, which may follow a schedule. That is so in most steps of most runs. It saves time where time counts: at every
    step, with the processor's caches full of the model's data.

    Args:
        unscaled: pairs of a group and the values it had before the step. The scaler restores a step from this list.
        plans: one for each group.
        changes: what computes the new values, by a group's kind and what `GroupPlan.read_fixed` reads.
        counted: groups whose step counts stand for the optimizer's, and the accumulated sums of their averages. Empty
            where no bias is corrected.
        state: state of the optimizer.
        lr_factor: the factor of the learning rates in that step.
        raised: the powers of the betas.
    """

    __slots__ = ("_counted", "_follows_rate", "_groups", "_lr_factor", "_state")

    def __init__(
        self,
        unscaled: Sequence[tuple[dict[str, Any], dict[str, Any]]],
        plans: Sequence[GroupPlan],
        changes: Mapping[Any, Change | None],
        counted: Sequence[Leader],
        state: Mapping[Any, Any],
        *,
        lr_factor: float,
        raised: tuple[float, float],
    ) -> None:
        self._counted, self._state, self._lr_factor = counted, state, lr_factor
        self._groups = [
            _Group(group, found, plan, changes, raised if counted else None)
            for (group, found), plan in zip(unscaled, plans, strict=True)
        ]
        self._follows_rate = any(kept.change.follows_rate for kept in self._groups)

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
        for group, kept in zip(groups, self._groups, strict=False):
            if group is not kept.group or (kept.read(group) != kept.had and not kept.takes_betas(lr_factor)):
                self._undo(kept)
                return False
            found, values = kept.found, kept.values
            if "lr" in found:
                found["lr"] = lr = group["lr"]
                values["lr"] = lr * lr_factor
            group.update(values)
        return True

    def _undo(self, first: _Group) -> None:
        """Put the groups before this one back."""
        for kept in self._groups:
            if kept is first:
                return
            kept.group.update(kept.found)


class _Group:
    """One parameter group, the values that a step has set in it, and how the next step comes by them.

    Args:
        group: the group, as it is set now.
        found: the values that it had before.
        plan: tells what its new values depend on.
        changes: what computes them.
        raised: the powers of the betas, where a bias may have to be corrected; else None.

    Attributes:
        group, found: as given.
        change: computes the values.
        values: what is set.
        read: reads what `values` depend on, except the learning rate.
        had: what it read.
    """

    __slots__ = ("_betas", "_fixed", "_most", "_read_fixed", "change", "found", "group", "had", "read", "values")

    def __init__(
        self,
        group: dict[str, Any],
        found: dict[str, Any],
        plan: GroupPlan,
        changes: Mapping[Any, Change | None],
        raised: tuple[float, float] | None,
    ) -> None:
        before = {**group, **found}
        self.group, self.found, self.values = group, found, {name: group[name] for name in found}
        self.read, self.had = plan.read, plan.read(before)
        self._read_fixed, self._fixed = plan.read_fixed, plan.read_fixed(before)
        change = changes[plan.kind, self._fixed]
        assert change is not None
        self.change = change
        self._betas = [name for name in BETAS if name in group]
        self._most: tuple[float, float] | None = None  # betas below which no bias is left; None: whatever they are
        if raised is not None and plan.accumulated is not None:
            traits, seen, (first, second) = plan.traits, plan.accumulated, raised
            most = (
                settled_betas(first, seen.steps + 1, seen.first + first) if traits.debiases_first else 1.0,
                settled_betas(second, seen.steps + 1, seen.second + second) if traits.debiases_second else 1.0,
            )
            self._most = most if most != (1.0, 1.0) else None

    def takes_betas(self, lr_factor: float) -> bool:
        """Set in `values` what becomes of the betas that the group has now.

        Args:
            lr_factor: the factor of the learning rate.

        Returns:
            False where something else has changed, or a bias may have to be corrected at these betas.
        """
        group = self.group
        if self._read_fixed(group) != self._fixed:
            return False
        for name in self._betas:
            value = group[name]
            if type(value) is not float and not (type(value) is tuple and all(type(each) is float for each in value)):
                return False  # a tensor or a list, which may be changed in place
        if self._most is not None:
            beta1, beta2 = betas_of(group)
            if not (beta1 < self._most[0] and beta2 < self._most[1]):
                return False
        self.values.update(self.change.at(group, lr_factor, 1.0, 1.0)[1])
        for name in self._betas:
            if name in self.found:
                self.found[name] = group[name]
        self.had = self.read(group)
        return True
