"""Problems whose gradient noise is known exactly, and the traps that estimators fall into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset


class Offset(nn.Module):
    """x -> w - x: with the loss below, the gradient of one example is w - x itself."""

    def __init__(self, dimensions: int, value: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((dimensions,), value))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def half_square(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of |pred - target|^2 / 2, summed over dimensions."""
    return (pred - target).square().sum(1).mean() / 2


@dataclass
class Quadratic:
    """Examples from N(mean, sigma^2 I) in d dimensions, weights at 0: |G|^2 = d mean^2, tr(Sigma) = d sigma^2."""

    dimensions: int = 20
    mean: float = 1.0
    sigma: float = 4.0

    @property
    def grad_sq(self) -> float:
        return self.dimensions * self.mean**2

    @property
    def trace(self) -> float:
        return self.dimensions * self.sigma**2

    @property
    def noise_scale(self) -> float:
        return self.trace / self.grad_sq

    def model(self) -> Offset:
        return Offset(self.dimensions)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = self.mean + self.sigma * torch.randn(size, self.dimensions, generator=generator)
        return x, torch.zeros(size, self.dimensions)


def digits() -> TensorDataset:
    """scikit-learn's 1,797 handwritten digits, 64 pixels each."""
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))


def digits_mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Traps(nn.Module):
    """An embedding tied to the output layer, a frozen layer, and a parameter that the loss never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.hidden = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.frozen(torch.tanh(self.hidden(self.embedding(tokens))))
        return h @ self.embedding.weight.T


def per_example_gradients(model: nn.Module, loss_func, x: Tensor, y: Tensor) -> Tensor:
    """The slow exact way: one gradient an example, flattened, in double precision; shape (examples, parameters)."""
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss_of_one(parameters, xi, yi):
        return loss_func(functional_call(model, parameters, (xi[None],)), yi[None])

    gradients = vmap(grad(loss_of_one), in_dims=(None, 0, 0))(trainable, x, y)
    model.float()
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def exact(gradients: Tensor) -> tuple[float, float]:
    """(tr(Sigma), |G|^2) of a population of examples."""
    mean = gradients.mean(0)
    return (gradients - mean).square().sum(1).mean().item(), mean.square().sum().item()
