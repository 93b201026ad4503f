"""The exact noise scale at given weights: every sample of a data set, and every pair of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adaptbs.gradients.halves import GradientPool
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.model.preserve import preserved
from adaptbs.noise_scale.b_simple import to_floats
from adaptbs.types import SquaredNorms
from benchmarks.common.per_example import PerExample

CHUNK = 6000  # samples at a time


def by_example(model: nn.Module, loss_func: Callable[..., Tensor], *data: Tensor) -> SquaredNorms:
    """1, mean |g_i|^2, N, |mean g|^2 over all N samples, for a model whose examples do not meet (no BatchNorm).

    `.grad_sq` of that is the mean of g_i . g_j over all i != j, which is what disjoint samples drawn without
    replacement estimate without bias; `.trace` the variance of one example's gradient. Dropout has to be 0.
    """
    source = PerExample(model, BatchLoss(loss_func))
    n, squares, total = len(data[0]), 0.0, None
    for start in range(0, n, CHUNK):
        chunk = [t[start : start + CHUNK] for t in data]
        norms = source.measure(chunk)
        assert norms is not None
        gradient = source.mean_gradient(model, chunk)
        squares += float(norms.small) * len(chunk[0])
        weighted = [g.double() * len(chunk[0]) for g in gradient if g is not None]
        total = weighted if total is None else [a + b for a, b in zip(total, weighted, strict=True)]
    large = sum(float(t.square().sum()) for t in total) / n**2
    return SquaredNorms(1, squares / n, n, large)


def by_batches(
    model: nn.Module, loss_func: Callable[..., Tensor], *data: Tensor, size: int, generator: torch.Generator
) -> SquaredNorms:
    """The same from all pairs of the batches of `size` that a random order of the data is cut into.

    For models that tie the samples of a batch together (BatchNorm): the expected gradient is then that of a batch of
    this size, and tr(Sigma) `size` times the variance of such a batch's gradient.
    """
    pool, gradient = GradientPool(size), MeanGradient(BatchLoss(loss_func))
    order = torch.randperm(len(data[0]), generator=generator)
    with preserved(model):
        for chosen in order[: len(order) // size * size].split(size):
            pool.add(gradient(model, [t[chosen] for t in data]))
    return to_floats([pool.norms()])[0]
