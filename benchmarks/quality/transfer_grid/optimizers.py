"""The optimizers as functions of stacked tensors: every run has hyperparameters of its own.

Weights, gradients and averages have the shape (R, P): R runs of P parameters each. tests/benchmarks/
test_transfer_grid.py compares them step for step with torch's, and with what adaptbs makes of torch's as k grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """The state of R runs.

    Attributes:
        weights: (R, P).
        first: average of the gradient, or SGD's momentum buffer, (R, P).
        second: average of its square, (R, P).
        missing1, missing2: 1 minus the mass of the averages, (R, 1): the product of the decays of all steps so far.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    missing1: Tensor
    missing2: Tensor

    def taken(self, runs: Tensor) -> State:
        """The runs of these numbers, in this order."""
        return State(*(tensor[runs] for tensor in self))


class Hyperparameters(NamedTuple):
    """Of one step, each (R, 1)."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor


Step = Callable[[State, Tensor, Hyperparameters], State]


def begin(weights: Tensor) -> State:
    """Before the first step."""
    zero, one = torch.zeros_like(weights), weights.new_ones(len(weights), 1)
    return State(weights, zero, zero, one, one)


def sgd(state: State, gradient: Tensor, by: Hyperparameters) -> State:
    """Momentum beta1, weight decay in the gradient."""
    first = by.beta1 * state.first + torch.addcmul(gradient, by.weight_decay, state.weights)
    return state._replace(weights=torch.addcmul(state.weights, by.lr, first, value=-1), first=first)


def adamw(state: State, gradient: Tensor, by: Hyperparameters) -> State:
    """AdamW, divided by the true mass of its averages whatever the betas were (docs/transfer.md)."""
    first = torch.lerp(gradient, state.first, by.beta1)
    second = torch.lerp(gradient.square(), state.second, by.beta2)
    missing1, missing2 = state.missing1 * by.beta1, state.missing2 * by.beta2
    root = second.sqrt().mul_((1 - missing2).rsqrt()).add_(by.eps)
    kept = state.weights * (1 - by.lr * by.weight_decay)
    return State(kept.addcmul_(by.lr / (missing1 - 1), first.div(root)), first, second, missing1, missing2)


def lion(state: State, gradient: Tensor, by: Hyperparameters) -> State:
    """Chen et al. 2023, arXiv:2302.06675."""
    direction = torch.lerp(gradient, state.first, by.beta1).sign_()
    kept = state.weights * (1 - by.lr * by.weight_decay)
    return state._replace(weights=kept.addcmul_(-by.lr, direction), first=torch.lerp(gradient, state.first, by.beta2))
