"""Tells at each step which parameter groups are alike, so that their new hyperparameters are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from .bias_correction import Accumulated
from .change import is_constant
from .traits import OptimizerTraits
from .transfer import DECAYS, FIRST, SECOND

# All that decides what becomes of a group, but for its learning rate and betas, which may follow a schedule.
_NAMES = ("eps", *DECAYS, "decoupled_weight_decay")
BETAS = ("betas", *FIRST, *SECOND)  # where the optimizer averages by them

Reader = Callable[[Mapping[str, Any]], Any]


class GroupPlan(NamedTuple):
    """How to tell whether a group is like another. Two groups of one kind that read alike get the same new values.

    Attributes:
        kind: a number that groups share which have the same traits and have accumulated the same.
        traits: how the optimizer uses the group's hyperparameters.
        accumulated: what the group's averages have accumulated; None where no bias is to be corrected.
        read: reads from the group all that its new values depend on, but its learning rate.
        read_fixed: reads the same but the betas.
        lasts: True if what `read_fixed` reads are numbers, which nobody changes in place.
    """

    kind: int
    traits: OptimizerTraits
    accumulated: Accumulated | None
    read: Reader
    read_fixed: Reader
    lasts: bool


def plans_of(
    groups: Sequence[Mapping[str, Any]], traits: Sequence[OptimizerTraits], accumulated: Sequence[Accumulated]
) -> list[GroupPlan]:
    """A plan for each group, which serves until the steps made on all of them are counted again.

    Args:
        groups: the hyperparameters, in torch's names or fastai's.
        traits: of each group; the last one stands for all further groups.
        accumulated: of each group; empty where nothing is counted.
    """
    kinds: dict[tuple[int, int], int] = {}
    plans = []
    for i, group in enumerate(groups):
        of_group = traits[min(i, len(traits) - 1)]
        seen = accumulated[i] if accumulated and of_group.debiases else None
        kind = kinds.setdefault((id(of_group), id(seen)), len(kinds))
        names = [name for name in _NAMES if name in group]
        betas = [name for name in BETAS if name in group and (of_group.first or of_group.second)]
        lasts = is_constant(tuple(group[name] for name in names))
        plans.append(GroupPlan(kind, of_group, seen, _reader([*betas, *names]), _reader(names), lasts))
    return plans


def _reader(names: Sequence[str]) -> Reader:
    return itemgetter(*names) if names else len
