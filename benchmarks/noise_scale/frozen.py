"""Very many measurements of one model at frozen weights, fast and exact, and what theory says of their spread.

At frozen weights everything that HalfBatches, PerExample and bs_find measure follows from per-example gradients g_i,
and for a chain of linear layers those are products of what went in and what came back: g_i = d_i x_i'. One pass over
the data keeps all x_i and d_i; a batch's gradient is then one small product D'X / b. `tests/statistical` compares
with the package's own sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adaptbs.types import SquaredNorms

GROUP = 4  # batches whose gradients are kept as one


class Population:
    """A classifier of linear layers at its weights of now, on all samples of a data set.

    Batches are drawn *with* replacement: their samples are then independent, and the truth is that of the population
    itself, |G|^2 = |mean g_i|^2 and tr(Sigma) = mean |g_i|^2 - |G|^2 (with the pairs i = j, unlike `exact.by_example`,
    which is for samples drawn without replacement).
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.layers = caught(model, x, y)
        self.squares = sum((h.square().sum(1) + 1) * d.square().sum(1) for h, d in self.layers)  # |g_i|^2
        self.mean = [(d.T @ h / len(x), d.mean(0)) for h, d in self.layers]  # of weights and biases
        self.grad_sq = float(sum(w.double().square().sum() + b.double().square().sum() for w, b in self.mean))
        self.trace = float(self.squares.double().mean()) - self.grad_sq
        self.noise_scale = self.trace / self.grad_sq

    def gradients(self, chosen: Tensor) -> Tensor:
        """Mean gradients of k batches of b samples: (k, b) -> (k, parameters)."""
        parts = []
        for h, d in self.layers:
            parts += [torch.bmm(d[chosen].mT, h[chosen]).flatten(1), d[chosen].sum(1)]
        return torch.cat(parts, 1) / chosen.shape[1]

    def measure(self, batches: int, size: int, generator: torch.Generator) -> Measured:
        """So many fresh batches, by halves and per example."""
        chosen = torch.randint(len(self.squares), (batches, size), generator=generator)
        halves = (self.gradients(some.view(-1, size // 2)).view(len(some), 2, -1) for some in chosen.split(GROUP))
        return measured(halves, self.squares[chosen], size)

    def moments(self, generator: torch.Generator, sample: int = 6000) -> Moments:
        """What the spread depends on; tr(Sigma^2) from all pairs of a sample, the rest from everybody."""
        along = sum(((d @ w) * h).sum(1) + d @ b for (h, d), (w, b) in zip(self.layers, self.mean, strict=True))
        noise = self.squares - 2 * along + self.grad_sq  # |e_i|^2, e_i = g_i - G
        some = torch.randperm(len(along), generator=generator)[:sample]
        products = sum((h[some] @ h[some].T + 1) * (d[some] @ d[some].T) for h, d in self.layers)
        products = (products - along[some, None] - along[None, some] + self.grad_sq).double()  # e_i . e_j
        different = products.square().sum() - products.diagonal().square().sum()
        (fourth, third), (_, var_along) = torch.cov(torch.stack([noise, along]).double()).tolist()
        trace_of_square = float(different) / (len(some) * (len(some) - 1))
        return Moments(self.trace, self.grad_sq, trace_of_square, var_along, fourth, third)


class Gaussian:
    """Gradients G + e with |G|^2 = 1 and isotropic Gaussian e in 20 dimensions, so tr(Sigma)^2/tr(Sigma^2) = 20."""

    def __init__(self, noise_scale: float, dimensions: int = 20) -> None:
        self.noise_scale, self.dimensions = noise_scale, dimensions

    def measure(self, batches: int, size: int, generator: torch.Generator) -> Measured:
        sd = (self.noise_scale / self.dimensions) ** 0.5
        gradients = sd * torch.randn(batches, size, self.dimensions, generator=generator)
        gradients[..., 0] += 1
        halves = gradients.view(batches, 2, size // 2, -1).mean(2)
        return measured(halves.split(GROUP), gradients.square().sum(2), size)

    def moments(self, generator: torch.Generator | None = None) -> Moments:
        trace, d = self.noise_scale, self.dimensions
        return Moments(trace, 1.0, trace**2 / d, trace / d, 2 * trace**2 / d, 0.0)


@dataclass(frozen=True)
class Measured:
    """Measurements of the same batches by two sources, and what pools over batches need.

    Attributes:
        halves, examples: one measurement a batch.
        gradients: of each four consecutive batches together, (batches / 4, parameters).
        mean_square: |g_i|^2 of each batch's samples, averaged, (batches,).
    """

    halves: list[SquaredNorms]
    examples: list[SquaredNorms]
    gradients: Tensor
    mean_square: Tensor


def measured(halves: Iterable[Tensor], squares: Tensor, size: int) -> Measured:
    """From gradients of both halves of each four batches, (4, 2, parameters) at a time, and |g_i|^2 (batches, size)."""
    small, large, together = [], [], []
    for group in halves:
        whole = group.mean(1)
        small.append(group.square().sum(2).mean(1))
        large.append(whole.square().sum(1))
        together.append(whole.mean(0))
    mean_square = squares.mean(1)
    s, B, one = torch.cat(small).tolist(), torch.cat(large).tolist(), mean_square.tolist()
    return Measured(
        [SquaredNorms(size // 2, *row) for row in zip(s, [size] * len(s), B, strict=True)],
        [SquaredNorms(1, *row) for row in zip(one, [size] * len(s), B, strict=True)],
        torch.stack(together), mean_square,
    )  # fmt: skip


def caught(model: nn.Module, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(what went in (n, in), gradient of each sample's own loss by what came out (n, out)) of each linear layer."""
    kept: dict[nn.Module, list[Tensor]] = {}

    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        kept[layer] = [inputs[0].detach(), output]

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Linear)]
    loss = cross_entropy(model(x), y, reduction="sum")
    for handle in handles:
        handle.remove()
    deltas = torch.autograd.grad(loss, [output for _, output in kept.values()])
    return [(rows, delta) for (rows, _), delta in zip(kept.values(), deltas, strict=True)]


@dataclass(frozen=True)
class Moments:
    """Of per-example gradients g = G + e.

    Attributes:
        trace: tr(Sigma) = E|e|^2.
        grad_sq: |G|^2.
        trace_of_square: tr(Sigma^2) = E (e_i . e_j)^2.
        along: G' Sigma G, the variance of G . e.
        fourth: the variance of |e|^2; 2 tr(Sigma^2) where e is Gaussian.
        third: the covariance of |e|^2 and G . e; 0 where e is Gaussian.
    """

    trace: float
    grad_sq: float
    trace_of_square: float
    along: float
    fourth: float
    third: float

    @property
    def r(self) -> float:
        """tr(Sigma)^2 / tr(Sigma^2), the number of directions that noise is spread over."""
        return self.trace**2 / self.trace_of_square

    def sd_of_log(self, parts: int, size: int, pooled: float) -> float:
        """Of log B_simple, to first order, from `pooled` measurements of `parts` gradients of `size` samples each.

        With m parts of b samples, |G|^2 is the mean of g_p . g_q over p != q, and tr(Sigma) is b times the parts'
        variance (Hoeffding 1948 for the variance of such means over pairs):

            Var |G|^2     = 4 G'Sigma G / mb + 2 tr(Sigma^2) / (b^2 m (m - 1))
            Var tr(Sigma) = (Var |e|^2 + 2 (b - 1) tr(Sigma^2)) / mb + 2 tr(Sigma^2) / (m (m - 1))
            Cov           = 2 Cov(|e|^2, G.e) / mb - 2 tr(Sigma^2) / (b m (m - 1))
        """
        m, b, s2 = parts, size, self.trace_of_square
        var_grad_sq = 4 * self.along / (m * b) + 2 * s2 / (b**2 * m * (m - 1))
        var_trace = (self.fourth + 2 * (b - 1) * s2) / (m * b) + 2 * s2 / (m * (m - 1))
        cov = 2 * self.third / (m * b) - 2 * s2 / (b * m * (m - 1))
        relative = var_trace / self.trace**2 + var_grad_sq / self.grad_sq**2 - 2 * cov / (self.trace * self.grad_sq)
        return float(np.sqrt(relative / pooled))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, *, batch: int = 128, lr: float = 0.01) -> None:
    """So many plain SGD steps, epoch by epoch in torch's random order of now."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    while steps > 0:
        for chosen in torch.randperm(len(x)).split(batch)[:steps]:
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            steps -= 1
