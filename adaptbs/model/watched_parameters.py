"""Chooses a few parameters, by which a backward pass is noticed."""

from __future__ import annotations

from itertools import chain

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

FEW = 8  # parameters that are watched for a backward pass


def a_few_trained(optimizer: Optimizer) -> list[Tensor]:
    """A few of the parameters that are trained, spread evenly over all of them, by which a backward pass is noticed.

    Hooks on all parameters would cost as much as some steps at each epoch of a deep model. A pass that reaches none of
    these is noticed by the optimizer's step.
    """
    return a_few_of(list(chain.from_iterable(group["params"] for group in optimizer.param_groups)))


def a_few_of(parameters: list[Tensor]) -> list[Tensor]:
    """A few of these parameters that are trained, as `a_few_trained`."""
    few = _spread(parameters)
    if all(p.requires_grad and p.is_leaf for p in few):
        return few
    return _spread([p for p in parameters if p.requires_grad and p.is_leaf])


def a_few_others(model: Module, optimizer: Optimizer) -> list[Tensor]:
    """A few of the model's parameters that are to be trained and are not the optimizer's, usually none."""
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return _spread([p for p in model.parameters() if p.requires_grad and id(p) not in own])


def group_sizes(optimizer: Optimizer) -> list[int]:
    """Number of parameters of each group; it shows that a group has been added."""
    return [len(group["params"]) for group in optimizer.param_groups]


def _spread(parameters: list[Tensor]) -> list[Tensor]:
    last = len(parameters) - 1
    return [parameters[round(i * last / (FEW - 1))] for i in range(FEW)] if last >= FEW else parameters
