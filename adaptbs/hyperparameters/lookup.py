"""Looks up the traits of a torch optimizer: by its class in torch.optim, and else by a trial."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from torch.optim import Optimizer

from .recognition import recognise
from .traits import ADAM, ADAMAX, LR_ONLY, MUON, NADAM, RADAM, RMSPROP, OptimizerTraits

log = logging.getLogger(__name__)

# Keys are class names of torch.optim. A subclass has the traits of the class that it inherits from.
_TRAITS = {
    "SGD": LR_ONLY, "ASGD": LR_ONLY,
    "AdamW": replace(ADAM, decoupled=True), "Adam": ADAM, "NAdam": NADAM, "RAdam": RADAM, "Adamax": ADAMAX,
    "RMSprop": RMSPROP,
    "Adagrad": LR_ONLY, "Adadelta": LR_ONLY, "Rprop": LR_ONLY, "SparseAdam": LR_ONLY,
    "Adafactor": OptimizerTraits(decoupled=True), "Muon": MUON,
}  # fmt: skip


def traits_by_group(optimizer: Optimizer) -> list[OptimizerTraits]:
    """The traits of each parameter group of a torch optimizer.

    A class of torch.optim, or one that inherits from it, is looked up. Any other is tried on a weight of its own
    (`recognition`), once for all groups that have the same settings but for their numbers: one optimizer may step its
    groups by different rules, as Muon does with Adam for what is no matrix. What only hands steps on to the optimizer
    that it wraps is taken for that one.
    """
    optimizer = _wrapped_by(optimizer) or optimizer
    names = [cls.__name__ for cls in type(optimizer).__mro__ if cls.__module__.startswith("torch.optim")]
    known = next((_TRAITS[name] for name in names if name in _TRAITS), None)
    if known is not None:
        return [replace(known, adaptive=_is_adaptive(type(optimizer).__name__.lower()))] * len(optimizer.param_groups)
    found: dict[str, OptimizerTraits] = {}
    for group in optimizer.param_groups:
        kind = _kind(group)
        if kind not in found:
            found[kind] = recognise(optimizer, group)
    return [found[_kind(group)] for group in optimizer.param_groups]


def traits_of(optimizer: Optimizer) -> OptimizerTraits:
    """The traits of a torch optimizer as a whole: those of its first group, known if those of all groups are."""
    groups = traits_by_group(optimizer)
    return replace(groups[0], adaptive=any(t.adaptive for t in groups), known=all(t.known for t in groups))


def _wrapped_by(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer that this one wraps and shares all groups with, unless it has a number of its own.

    A number says that it does something beside, as Lookahead does at each k-th step.
    """
    own = vars(optimizer)
    if any(isinstance(value, Real) and not isinstance(value, bool) for value in own.values()):
        return None
    groups = list(map(id, optimizer.param_groups))
    inside = (value for value in own.values() if isinstance(value, Optimizer))
    return next((inner for inner in inside if list(map(id, inner.param_groups)) == groups), None)


def _kind(group: Mapping[str, Any]) -> str:
    """A key that is the same for groups that are stepped alike: names, and settings that are no numbers."""
    settings = {
        name: value if isinstance(value, (bool, str)) or value is None else type(value).__name__
        for name, value in group.items()
        if name != "params"
    }
    return json.dumps(settings, sort_keys=True)


def _is_adaptive(name: str) -> bool:
    """True if one of torch's optimizers, by its name, divides its step by the gradient's own size.

    Every optimizer but plain SGD is assumed to do so, because sqrt(k) is the smaller step and so the safer mistake. The
    assumption is logged if the name is unknown.
    """
    if name in ("sgd", "asgd"):
        return False
    if not any(word in name for word in ("adam", "rmsprop", "adagrad", "adadelta", "adafactor", "muon")):
        log.info("optimizer %s is not known, so its learning rate is scaled by sqrt(k). lr_scaling= changes that", name)
    return True
