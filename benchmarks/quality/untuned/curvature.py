"""The largest eigenvalue of the Gauss-Newton matrix in an optimizer's metric, and what the optimizer bears of it.

The metric is P, what the optimizer divides its step by, elementwise: sqrt(v_hat) + eps for Adam, 1 for SGD. All is
times the learning rate: the matrix is S^1/2 J^T H J S^1/2 with S = lr/P, J the first derivative of the outputs by the
weights, and H the second derivative of the loss by the outputs. It has no unit. The Hessian's other half, from the
curvature of the outputs, is left out: the Hessian's largest eigenvalues come from this one (Papyan 2019,
arXiv:1901.08244).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from adaptbs.model.preserve import preserved

Product = Callable[[Tensor], Tensor]
ORDER = 1989  # seed of the first vector
MOST_PRODUCTS, LOOK_BACK, TOLERANCE = 40, 3, 0.01  # Lanczos ends when so many products bring no more than this share


def step_lengths(optimizer: Optimizer, weights: Sequence[Tensor]) -> Tensor:
    """The diagonal of S = lr/P, flat; 0 for weights that have had no gradient yet, whose P says nothing."""
    groups = {weight: group for group in optimizer.param_groups for weight in group["params"]}
    parts = (groups[w]["lr"] * _inverse_metric(groups[w], optimizer.state[w], w) for w in weights)
    return torch.cat([part.flatten() for part in parts])


def _inverse_metric(group: dict[str, Any], state: dict[str, Any], weight: Tensor) -> Tensor:
    if "exp_avg_sq" in state:  # Adam, AdamW, NAdam
        square = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    elif "square_avg" in state:  # RMSprop
        square = state["square_avg"]
    elif "sum" in state:  # Adagrad
        square = state["sum"]
    elif "momentum" in group:  # SGD
        return torch.ones_like(weight)
    else:
        raise ValueError(f"an optimizer whose state is {sorted(state)} has no metric that is known here")
    return torch.where(square > 0, 1 / (square.sqrt() + group["eps"]), 0.0)


def stability_limit(optimizer: Optimizer) -> float:
    """The largest lr x curvature in its metric at which the optimizer is stable on a quadratic.

    Beyond it the weights change sign at every step and grow. So it is 2 over the step for a gradient of alternating
    sign, in steps of plain gradient descent. For Adam: Cohen et al. 2022, arXiv:2207.14484.
    """
    group = optimizer.param_groups[0]
    if "momentum_decay" in group:  # NAdam: a share of the step is the gradient itself, the rest the average
        beta = group["betas"][0]
        step = float(optimizer.state[group["params"][0]]["step"]) + 1
        now, then = (beta * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        return 2 / (1 - now + then * (1 - beta) / (1 + beta))
    if "betas" in group:
        return 2 * (1 + group["betas"][0]) / (1 - group["betas"][0])
    momentum = group.get("momentum", 0.0)  # of a sum, not of an average: its step is 1/(1 - momentum) times as long
    return 2 * (1 + momentum) / (1 + 2 * momentum if group.get("nesterov") else 1)


@contextmanager
def gauss_newton(
    model: nn.Module, loss_func: Callable[[Any, Tensor], Tensor], x: Tensor, y: Tensor, lengths: Tensor
) -> Iterator[Product]:
    """The matrix times a vector, over these samples, for a model as it trains but for dropout.

    J v is the derivative of u -> J^T u, which is linear, in the direction of v.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    sizes, roots = [w.numel() for w in weights], lengths.sqrt()
    with preserved(model), _differentiable_twice(model):
        outputs = model(x)
        at = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_func(at, y), at, create_graph=True)
        unit = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, weights, unit, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            parts = [part.view_as(w) for part, w in zip((roots * vector).split(sizes), weights, strict=True)]
            (forward,) = torch.autograd.grad(pulled, unit, parts, retain_graph=True)
            (curved,) = torch.autograd.grad(slope, at, forward, retain_graph=True)
            back = torch.autograd.grad(outputs, weights, curved, retain_graph=True)
            return roots * torch.cat([part.flatten() for part in back])

        yield product


@contextmanager
def _differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Dropout off, and EmbeddingBag, of which torch has no second derivative, written out."""
    off = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    bags = [module for module in model.modules() if isinstance(module, nn.EmbeddingBag)]
    try:
        for module in off:
            module.training = False
        for bag in bags:
            bag.forward = partial(_mean_of_words, bag)  # type: ignore[method-assign]
        yield
    finally:
        for module in off:
            module.training = True
        for bag in bags:
            del bag.forward


def _mean_of_words(bag: nn.EmbeddingBag, x: Tensor) -> Tensor:
    """EmbeddingBag's forward pass, mode mean."""
    kept = (x != bag.padding_idx).to(bag.weight.dtype)[..., None]
    return (F.embedding(x, bag.weight) * kept).sum(1) / kept.sum(1).clamp(min=1)


def largest_eigenvalue(product: Product, size: int, most: int = MOST_PRODUCTS) -> tuple[float, int]:
    """(the largest eigenvalue of a symmetric matrix, the products it took), by Lanczos' method.

    All vectors are kept orthogonal. The value is never too high, and about `TOLERANCE` too low where the next
    eigenvalues are near.
    """
    vector = torch.randn(size, generator=torch.Generator().manual_seed(ORDER))
    basis, image, found = torch.empty(0, size), torch.empty(0, size), []
    for _ in range(min(most, size)):
        vector = vector - basis.T @ (basis @ vector)
        vector = vector - basis.T @ (basis @ vector)  # once is not enough in single precision
        if vector.norm() == 0:
            break
        basis = torch.cat([basis, (vector / vector.norm())[None]])
        image = torch.cat([image, product(basis[-1])[None]])
        within = (basis @ image.T).double()
        found.append(torch.linalg.eigvalsh((within + within.T) / 2)[-1].item())
        if _settled(found):
            break
        vector = image[-1]
    return found[-1], len(found)


def _settled(found: Sequence[float]) -> bool:
    return len(found) > LOOK_BACK and found[-1] - found[-1 - LOOK_BACK] <= TOLERANCE * abs(found[-1])
