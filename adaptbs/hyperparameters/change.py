"""New hyperparameters of alike parameter groups: computed once, and at each step only where they change."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .traits import OptimizerTraits
from .transfer import DECAYS, FIRST, NUMBER, SECOND, changed_group, factors


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
    """The new values of groups that are alike but for their learning rates and betas.

    All but these and the bias correction stays from step to step. So `at` makes of them what `changed` would, but for
    what is multiplied by 1, in less time.

    Args:
        traits, following, group, k, raised: as for `changed`.
    """

    __slots__ = ("_betas", "_compiled", "_decay", "_decays", "_eps", "_pair", "_root", "_values")

    def __init__(
        self,
        traits: OptimizerTraits,
        following: Collection[str],
        group: Mapping[str, Any],
        *,
        k: float,
        raised: tuple[float, float],
    ) -> None:
        _, self._values = changed(traits, following, group, k, 1.0, raised)
        self._compiled = traits.compiled
        first, second = raised[0] if traits.first else 1.0, raised[1] if traits.second else 1.0
        self._pair = (first, second) if "betas" in self._values else None
        powers = {**dict.fromkeys(FIRST, first), **dict.fromkeys(SECOND, second)}
        self._betas = [(name, power) for name, power in powers.items() if name in self._values]
        eps = group.get("eps")
        self._eps = eps if isinstance(eps, NUMBER) else None
        self._root = math.sqrt(k) if traits.eps and "eps" in following else 1.0
        self._decay = k if "weight_decay" in following else None
        decoupled = group.get("decoupled_weight_decay", traits.decoupled)
        self._decays = [(name, group[name]) for name in DECAYS if name in group] if decoupled else []

    @property
    def follows_rate(self) -> bool:
        """True if other values than the learning rate depend on its factor."""
        return bool(self._decays)

    def at(self, group: Mapping[str, Any], lr_factor: float, lr: float, eps: float) -> tuple[float, dict[str, Any]]:
        """The factor of the learning rate, and the new values of all else that changes.

        Args:
            group: the group, with its betas of the base batch.
            lr_factor: the learning rate's factor by its rule.
            lr: the bias correction's factor of the learning rate.
            eps: its factor of eps.
        """
        by_lr, values = lr_factor * lr, self._values.copy()
        if self._pair is not None:
            (beta1, beta2, *others), (first, second) = group["betas"], self._pair
            values["betas"] = (beta1**first, beta2**second, *others)
        for name, power in self._betas:
            values[name] = group[name] ** power
        if self._compiled:
            lr = eps = 1.0  # goes to what may change alone, see `changed`
        if self._eps is not None:
            values["eps"] = self._eps * (eps / self._root)
        for name, decay in self._decays:
            values[name] = decay * ((lr_factor if self._decay is None else self._decay) / (lr_factor * lr))
        return by_lr, values


def is_constant(values: Any) -> bool:
    """True if hyperparameters stay what they are as long as they compare equal: a tensor may be changed in place."""
    if isinstance(values, tuple | list):
        return all(map(is_constant, values))
    return not isinstance(values, Tensor)
