"""Adam under adaptbs against an Adam that keeps the true mass of each of its averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from adaptbs.hyperparameters.step_hook import StepHook
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS
from adaptbs.types import Scale

ALL = frozenset(HYPERPARAMETERS)


class TrueAdam:
    """Adam at hyperparameters that change at will: an average over its mass, kept beside it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.clone()
        self.m, self.v = torch.zeros_like(weight), torch.zeros_like(weight)
        self.mass1 = self.mass2 = 0.0

    def step(self, g: Tensor, lr: float, beta1: float, beta2: float, eps: float, wd: float, decoupled: bool) -> None:
        if decoupled:
            self.weight -= lr * wd * self.weight
        else:
            g = g + wd * self.weight
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        self.mass1 = beta1 * self.mass1 + (1 - beta1)
        self.mass2 = beta2 * self.mass2 + (1 - beta2)
        self.weight -= lr * (self.m / self.mass1) / ((self.v / self.mass2).sqrt() + eps)


def gradients(n: int, noise: float = 1.0) -> Tensor:
    return 1 + noise * torch.randn(n, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


KS = [1.0] * 30 + [8.0] * 20 + [2.0] * 20 + [0.5] * 10 + [64.0] * 5 + [1.0] * 30


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_through_any_change_of_the_batch_it_is_the_adam_of_true_masses(decoupled, how):
    weight = nn.Parameter(torch.ones(50, dtype=torch.float64))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind([weight], lr=1e-2, betas=(0.9, 0.999), eps=1e-2, weight_decay=0.1, **how)
    oracle = TrueAdam(weight.detach())
    k = 1.0
    StepHook(optimizer, lambda: Scale(k, math.sqrt(k)), ALL)
    for k, g in zip(KS, gradients(len(KS)), strict=True):
        weight.grad = g.clone()
        optimizer.step()
        wd = 0.1 * math.sqrt(k) if decoupled else 0.1
        betas = 0.9 ** k**0.25, 0.999**k
        oracle.step(g, 1e-2 * math.sqrt(k), *betas, 1e-2 / math.sqrt(k), wd, decoupled)
        # A correction is left out once it is below 1e-6.
        torch.testing.assert_close(weight.detach(), oracle.weight, rtol=1e-5, atol=1e-7)


def update_sizes(corrected: bool, **adam) -> tuple[float, float]:
    """Mean update over the learning rate at the 500th step, and at the 501st, whose batch is 8 times as large."""
    weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=(0.9, 0.999), **adam)
    k, sizes = 1.0, []
    if corrected:
        StepHook(optimizer, lambda: Scale(k), frozenset({"betas"}))
    for g in gradients(501, noise=0.1):
        if len(sizes) == 500:
            k = 8.0
            if not corrected:
                optimizer.param_groups[0]["betas"] = (0.9 ** 8**0.25, 0.999**8)
        before, weight.grad = weight.detach().clone(), g.clone()
        optimizer.step()
        sizes.append((weight.detach() - before).abs().mean().item())
    return sizes[-2], sizes[-1]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_growing_eightfold_at_step_500_the_update_does_not_jump(amsgrad):
    before, after = update_sizes(corrected=False, amsgrad=amsgrad)
    assert after / before == pytest.approx(1.57, abs=0.03)
    before, after = update_sizes(corrected=True, amsgrad=amsgrad)
    assert after / before == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["Adamax", "NAdam", "RAdam"])
def test_its_kin_does_not_jump_either(name):
    weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = getattr(torch.optim, name)([weight], lr=1.0, betas=(0.99, 0.999))
    k, sizes = 1.0, []
    StepHook(optimizer, lambda: Scale(k), frozenset({"betas"}))
    for i, g in enumerate(gradients(201, noise=0.01)):
        k = 8.0 if i == 200 else 1.0
        before, weight.grad = weight.detach().clone(), g.clone()
        optimizer.step()
        sizes.append((weight.detach() - before).abs().mean().item())
    assert sizes[-1] / sizes[-2] == pytest.approx(1, abs=0.03)
