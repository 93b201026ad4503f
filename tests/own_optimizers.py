"""Optimizers as people write them for themselves, and the layouts of packages that are too large to test with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class OwnLion(Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, as in many a training script."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(beta1 * state["momentum"] + (1 - beta1) * p.grad))
                state["momentum"].lerp_(p.grad, 1 - beta2)


class OwnAdamW(Optimizer):
    """AdamW, with the names of its state and its numbers open to those made from it."""

    names = ("m", "v")
    decoupled = True
    extra: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.1
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **self.extra}
        super().__init__(params, defaults)

    def masses(self, state: dict[str, Any], beta1: float, beta2: float) -> tuple[float, float]:
        return 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            lr, (beta1, beta2, *_) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update({name: torch.zeros_like(p) for name in self.names}, step=0)
                state["step"] += 1
                grad = p.grad
                if self.decoupled:
                    p.mul_(1 - lr * group["weight_decay"])
                else:
                    grad = grad + group["weight_decay"] * p
                m, v = (state[name] for name in self.names)
                m.lerp_(grad, 1 - beta1)
                v.lerp_(grad * grad, 1 - beta2)
                mass1, mass2 = self.masses(state, beta1, beta2)
                p.sub_(lr * (m / mass1) / ((v / mass2).sqrt() + group["eps"]))


class LayoutOf8Bits(OwnAdamW):
    """bitsandbytes: state1 and state2, and numbers that are off."""

    names = ("state1", "state2")
    extra = {"alpha": 0.0, "t_alpha": None, "t_beta3": None}  # noqa: RUF012


class LayoutOfTensorLR(OwnAdamW):
    """torchao: its names, a learning rate that has to be a tensor, weight decay in the gradient."""

    names = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(self, params: Any, lr: Any = 1e-3, **arguments: Any) -> None:
        super().__init__(params, lr, **arguments)
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)

    def step(self, closure: Any = None) -> None:
        if not all(isinstance(group["lr"], Tensor) for group in self.param_groups):
            raise RuntimeError("lr was changed to a non-Tensor object")
        super().step(closure)


class AveragesByProduct(OwnAdamW):
    """Corrects its second average by something of its own."""

    def masses(self, state: dict[str, Any], beta1: float, beta2: float) -> tuple[float, float]:
        state["product"] = state.get("product", 1.0) * beta2 ** (1 / state["step"])
        return 1 - beta1 ** state["step"], 1 - state["product"]


class InstanceCounts(OwnAdamW):
    """Keeps its count of steps where nobody finds it."""

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.count = 0

    def masses(self, state: dict[str, Any], beta1: float, beta2: float) -> tuple[float, float]:
        state.pop("step")
        return 1 - beta1**self.count, 1 - beta2**self.count

    def step(self, closure: Any = None) -> None:
        self.count += 1
        for state in self.state.values():
            state["step"] = 0
        super().step(closure)


class ThreeBetas(OwnAdamW):
    """Has an average more, by its betas."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr, betas=(0.9, 0.99, 0.999))


class Warmed(OwnAdamW):
    """Counts the steps of a schedule within itself."""

    extra = {"warmup_steps": 100}  # noqa: RUF012


class NeedsClosure(Optimizer):
    """Evaluates the model itself."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:  # type: ignore[override]
        closure()


class Draws(OwnLion):
    """Draws random numbers in its step."""

    def step(self, closure: Any = None) -> None:
        torch.rand(3)
        super().step(closure)
