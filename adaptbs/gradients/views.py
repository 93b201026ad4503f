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
    all coordinates with v > 0. v is corrected for its start at 0 where the step does so, because parameters that began
    to train later, or with another beta2, have another correction. Before the first step there is no v, and so no view.

    Source: Kingma & Ba 2015, arXiv:1412.6980, for the metric.
    """

    def view(parameters: Sequence[Tensor]) -> Look | None:
        by_parameter: dict[int, Mapping[str, Any]] = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        groups = [by_parameter.get(id(p), {}) for p in parameters]
        roots = [
            _root_of_second_moment(optimizer.state.get(p, {}), group)
            for p, group in zip(parameters, groups, strict=True)
        ]
        known = [root for root in roots if root is not None]
        if not known:
            return None
        floor = _alive_quantile(known)
        scales = [
            None if root is None else 1 / (torch.maximum(root, floor.to(root.device)) + group.get("eps", 0.0))
            for group, root in zip(groups, roots, strict=True)
        ]
        return lambda gradient: [
            None if g is None or s is None else _real(dense(g)) * s for g, s in zip(gradient, scales, strict=True)
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


def _root_of_second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """sqrt(v) of one parameter, as the optimizer divides by it. None before its first step."""
    names = ("max_exp_avg_sq",) if group.get("amsgrad") and "max_exp_avg_sq" in state else SECOND_MOMENT
    v = next((_real(state[name].detach()).float() for name in names if name in state), None)
    if v is None:
        return None
    if group.get("centered"):  # RMSprop's, which divides by the variance
        v = (v - _real(state["grad_avg"].detach()).float().square()).clamp(min=0)
    mass = _mass(state, group)
    return v.sqrt() if mass is None else (v / mass).sqrt()


def _mass(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """1 - beta2^t, by which Adam divides v; None if the optimizer, as RMSprop, does not. Does not read it."""
    beta2 = group["betas"][1] if "betas" in group else group.get("sqr_mom")  # torch's and fastai's names
    step = state.get("step", group.get("step"))
    if beta2 is None or step is None:
        return None
    mass = 1 - torch.as_tensor(beta2**step)
    return mass.clamp(min=torch.finfo(torch.float32).tiny)  # 0 if the first step was skipped, as by a GradScaler


def _real(tensor: Tensor) -> Tensor:
    """The tensor, a complex one as pairs of real numbers, as which Adam takes them."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _alive_quantile(roots: Sequence[Tensor]) -> Tensor:
    """The `DEAD` quantile of the roots above 0, from a regular sample of them. Does not wait for the device."""
    every = max(1, sum(r.numel() for r in roots) // SAMPLE)
    sample = torch.cat([r.flatten()[::every].to(roots[0].device) for r in roots])
    return torch.nanquantile(torch.where(sample > 0, sample, torch.nan), DEAD).nan_to_num(0.0)
