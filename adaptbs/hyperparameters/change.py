"""New hyperparameters of alike parameter groups: computed once, and at each step only where they change."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .traits import OptimizerTraits
from .transfer import DECAYS, NUMBER, changed_group, factors


def changed(
    traits: OptimizerTraits,
    following: Collection[str],
    group: Mapping[str, Any],
    k: float,
    lr_factor: float,
    raised: tuple[float, float],
    corrected: tuple[float, float] = (1.0, 1.0),
) -> tuple[float, dict[str, Any]]:
    """The factor of a group's learning rate, and the new values of all else that changes.

    Args:
        traits: how the optimizer uses the hyperparameters.
        following: the hyperparameters that follow the batch.
        group: the group, with the hyperparameters of the base batch.
        k: batch size / base batch size.
        lr_factor: the learning rate's factor by its rule.
        raised: the powers of the betas.
        corrected: the bias correction's factors of the learning rate and of eps.
    """
    by = factors(
        traits, following, k=k, lr_factor=lr_factor, raised=raised,
        corrected=(1.0, 1.0) if traits.compiled else corrected,
        decoupled=group.get("decoupled_weight_decay", traits.decoupled),
    )  # fmt: skip
    values = changed_group(group, by)
    values.pop("lr", None)
    # A compiled correction changes at every step, so it goes to what may change alone.
    return by.lr * corrected[0] if traits.compiled else by.lr, values


class Change:
    """The new values of groups that are alike but for their learning rates.

    All but the bias correction stays from step to step. So `at` makes of a correction what `changed` would, but for
    what is multiplied by 1, in less time.

    Args:
        traits, following, group, k, lr_factor, raised: as for `changed`.
    """

    __slots__ = ("_compiled", "_decay", "_decays", "_eps", "_lr_factor", "_root", "_values")

    def __init__(
        self,
        traits: OptimizerTraits,
        following: Collection[str],
        group: Mapping[str, Any],
        *,
        k: float,
        lr_factor: float,
        raised: tuple[float, float],
    ) -> None:
        _, self._values = changed(traits, following, group, k, lr_factor, raised)
        self._compiled = traits.compiled
        eps = group.get("eps")
        self._eps = eps if isinstance(eps, NUMBER) else None
        self._lr_factor, self._root = lr_factor, math.sqrt(k) if traits.eps and "eps" in following else 1.0
        self._decay = k if "weight_decay" in following else lr_factor
        decoupled = group.get("decoupled_weight_decay", traits.decoupled)
        self._decays = [(name, group[name]) for name in DECAYS if name in group] if decoupled else []

    def at(self, lr: float, eps: float) -> tuple[float, dict[str, Any]]:
        """The factor of the learning rate, and the new values of all else that changes.

        Args:
            lr: the bias correction's factor of the learning rate.
            eps: its factor of eps.
        """
        by_lr = self._lr_factor * lr
        if self._compiled:
            return by_lr, self._values
        values = self._values.copy()
        if self._eps is not None:
            values["eps"] = self._eps * (eps / self._root)
        for name, decay in self._decays:
            values[name] = decay * (self._decay / by_lr)
        return by_lr, values


def is_constant(values: Any) -> bool:
    """True if hyperparameters stay what they are as long as they compare equal: a tensor may be changed in place."""
    if isinstance(values, tuple | list):
        return all(map(is_constant, values))
    return not isinstance(values, Tensor)
