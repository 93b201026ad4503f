"""Views of the same gradients: a single parameter group, or all parameters in Adam's metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .mean_gradient import Gradient, dense

#: Turns a gradient into the view of it. None stands for a parameter that the view leaves out.
Look: TypeAlias = Callable[[Gradient], Gradient]

#: (parameters that the gradients belong to) -> the look for one measurement, None while there is none.
View: TypeAlias = Callable[[Sequence[Tensor]], "Look | None"]

DEAD = 0.1  # quantile of sqrt(v), the smallest value that a coordinate is divided by
SAMPLE = 2**16  # coordinates that this quantile is computed from, or up to twice as many
SORTING = 8  # factor on the bytes of those coordinates, for sorting them with their places and masking the dead ones
SECOND_MOMENT = ("exp_avg_sq", "square_avg", "sqr_avg")  # names in the states of Adam, RMSprop and fastai's Adam


def views_of(optimizer: Any, *, metric: str, by_group: bool) -> dict[str, View]:
    """The views for the arguments `metric=` and `by_group=`, by name: "adam"; "group 0", "group 1", ...

    Args:
        optimizer: torch's or fastai's optimizer.
        metric: "adam" adds the view in Adam's metric.
        by_group: True adds a view for each parameter group.

    Raises:
        ValueError: if metric="adam" and the optimizer keeps no second moment.
    """
    views: dict[str, View] = {}
    if metric == "adam":
        kind = type(optimizer).__name__
        keeps = any(name in kind.lower() for name in ("adam", "rmsprop")) and kind != "Adamax"
        if not keeps and "sqr_mom" not in optimizer.param_groups[0]:
            raise ValueError(
                f"metric='adam' needs the second moment that Adam and RMSprop keep, and {kind} does not: "
                "leave metric= out"
            )
        views["adam"] = adam(optimizer)
    if by_group:
        views |= {f"group {i}": Group(optimizer, i) for i in range(len(optimizer.param_groups))}
    return views


class Group:
    """The view of the optimizer's i-th parameter group alone. Leaves out all other parameters."""

    def __init__(self, optimizer: Any, i: int) -> None:
        self._optimizer, self._i = optimizer, i

    def __call__(self, parameters: Sequence[Tensor]) -> Look:
        # Found anew each time, because groups may be frozen and unfrozen while a model trains.
        inside = self._inside
        kept = [id(p) in inside for p in parameters]
        return lambda gradient: [g if keep else None for g, keep in zip(gradient, kept, strict=True)]

    def is_outside(self, model: nn.Module) -> bool:
        """True if the model has none of its parameters, for example because they belong to the loss (ArcFace)."""
        return self._inside.isdisjoint(id(p) for p in model.parameters())

    @property
    def _inside(self) -> set[int]:
        return {id(p) for p in self._optimizer.param_groups[self._i]["params"]}


def adam(optimizer: Any) -> View:
    """The gradient divided by sqrt(v) + eps in every coordinate, as in Adam's step, with v from before the step.

    A coordinate that hardly ever has a gradient would dominate. So sqrt(v) counts as at least its 10 % quantile over
    all coordinates with v > 0. v is used without bias correction, because a factor common to all coordinates leaves
    B_simple as it is. Before the first step there is no v, and so no view.

    Source: Kingma & Ba 2015, arXiv:1412.6980, for the metric.
    """

    def view(parameters: Sequence[Tensor]) -> Look | None:
        eps = {id(p): g.get("eps", 0.0) for g in optimizer.param_groups for p in g["params"]}
        roots = [_root_of_second_moment(optimizer.state.get(p, {})) for p in parameters]
        known = [root for root in roots if root is not None]
        if not known:
            return None
        floor = _alive_quantile(known)
        scales = [
            None if root is None else 1 / (torch.maximum(root, floor.to(root.device)) + eps.get(id(p), 0.0))
            for p, root in zip(parameters, roots, strict=True)
        ]
        return lambda gradient: [
            None if g is None or s is None else dense(g) * s for g, s in zip(gradient, scales, strict=True)
        ]

    return view


def bytes_of_views(views: Iterable[View], whole: int) -> int:
    """Bytes that these views of two gradients may hold at once.

    Adam's metric holds the factors and both gradients times the factors, and before that the values that it sorts. A
    group only selects.

    Args:
        views: the views.
        whole: bytes of one gradient in float32.
    """
    own = sum(not isinstance(view, Group) for view in views)
    return own * (3 * whole + SORTING * min(whole, 2 * 4 * SAMPLE))


def _root_of_second_moment(state: Mapping[str, Any]) -> Tensor | None:
    v = next((state[name] for name in SECOND_MOMENT if name in state), None)
    return None if v is None else v.detach().float().sqrt()


def _alive_quantile(roots: Sequence[Tensor]) -> Tensor:
    """The `DEAD` quantile of the roots above 0, from a regular sample of them. Does not wait for the device."""
    every = max(1, sum(r.numel() for r in roots) // SAMPLE)
    sample = torch.cat([r.flatten()[::every].to(roots[0].device) for r in roots])
    return torch.nanquantile(torch.where(sample > 0, sample, torch.nan), DEAD).nan_to_num(0.0)
