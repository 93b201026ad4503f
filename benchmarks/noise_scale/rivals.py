"""How others estimate the noise scale from the gradients of training steps, each brought down to four numbers.

Every class takes the flat gradients g_1, g_2, ... of consecutive batches of b samples and gives `SquaredNorms` when it
has them. "The article" is D. Huynh, Implementing a batch size finder in fastai, 2019, with its notebook
(github.com/DanyWind/fastai_bs_finder); A to D are its four attempts in their order.

What was wrong there besides the moving weights is mended here, so that at unmoved weights each would be unbiased; only
`LastBatch` keeps what the article published. Factors that cancel in its ratio (means over parameters in place of sums,
an average's bias correction by batches in place of groups) are mended there too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptbs.types import SquaredNorms


class MovingAverages:
    """A: exponential averages m of g and q of g^2, elementwise; tr(Sigma)/b = sum(q - m^2), once corrected.

    The average of t gradients with weights w_i is as good as one batch of b / sum(w_i^2) samples, which is the
    correction (the article took |G|^2 to be the latest |g|^2, and left out both that and the factor b).

    Args:
        size: b, samples.
        beta: as in the article's notebook.
    """

    def __init__(self, size: int, beta: float = 0.9) -> None:
        self.size, self.beta, self.count = size, beta, 0
        self.mean: Tensor | None = None
        self.square: Tensor | None = None

    def add(self, gradient: Tensor) -> SquaredNorms | None:
        if self.mean is None or self.square is None:
            self.mean, self.square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.count += 1
        self.mean.lerp_(gradient, 1 - self.beta)
        self.square.lerp_(gradient.square(), 1 - self.beta)
        if self.count < 1 / (1 - self.beta):
            return None
        fill = 1 - self.beta**self.count  # the sum of the weights so far
        squared = (1 - self.beta) / (1 + self.beta) * (2 - fill) / fill  # sum of squares of weights that sum to 1
        large = self.mean.square().sum() / fill**2
        return SquaredNorms(self.size, self.square.sum() / fill, self.size / squared, large)  # (not whole: effective)


class Stored:
    """B: the variance over n stored gradients; tr(Sigma) = b sum(var), and |G|^2 = |mean|^2 - sum(var)/n.

    (The article left out the factor b and the correction of |mean|^2.) The numbers are those of `Consecutive`.
    """

    def __init__(self, size: int, n: int = 20) -> None:
        self.size, self.n = size, n
        self.gradients: list[Tensor] = []

    def add(self, gradient: Tensor) -> SquaredNorms | None:
        self.gradients.append(gradient)
        if len(self.gradients) < self.n:
            return None
        stored, self.gradients = torch.stack(self.gradients), []
        large, variance = stored.mean(0).square().sum(), stored.var(0).sum()
        return SquaredNorms(self.size, large + variance * (1 - 1 / self.n), self.n * self.size, large)


class TwoRuns:
    """C: |g|^2 from a run with batches of b and another with 2b, from the same weights, step against step.

    (The article has the two mixed up: its big is the small one's.)
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def add(self, gradient: Tensor, of_the_other: Tensor) -> SquaredNorms:
        return SquaredNorms(self.size, gradient @ gradient, 2 * self.size, of_the_other @ of_the_other)


class LastBatch:
    """D1: n consecutive batches as published: |G_b|^2 is that of the last alone. Stores all n, as published.

    `noise_scale` is what the article plots: the ratio of exponential averages over the groups so far.
    """

    def __init__(self, size: int, n: int = 20, beta: float = 0.99) -> None:
        self.size, self.n, self.beta = size, n, beta
        self.gradients: list[Tensor] = []
        self.averages = [0.0, 0.0]

    def add(self, gradient: Tensor) -> SquaredNorms | None:
        self.gradients.append(gradient)
        if len(self.gradients) < self.n:
            return None
        mean, self.gradients = torch.stack(self.gradients).mean(0), []
        norms = SquaredNorms(self.size, gradient @ gradient, self.n * self.size, mean @ mean)
        latest = float(norms.trace), float(norms.grad_sq)
        self.averages = [self.beta * a + (1 - self.beta) * v for a, v in zip(self.averages, latest, strict=True)]
        return norms

    @property
    def noise_scale(self) -> float:
        trace, grad_sq = self.averages
        return trace / grad_sq


class Consecutive:
    """D2: n consecutive batches, |G_b|^2 the mean over all of them, and only a sum of them kept."""

    def __init__(self, size: int, n: int = 20) -> None:
        self.size, self.n, self.count = size, n, 0
        self.sum: Tensor | None = None
        self.squares: Tensor | float = 0.0

    def add(self, gradient: Tensor) -> SquaredNorms | None:
        self.sum = gradient.clone() if self.sum is None else self.sum.add_(gradient)
        self.squares = self.squares + gradient @ gradient
        self.count += 1
        if self.count < self.n:
            return None
        large = self.sum @ self.sum / self.n**2
        norms = SquaredNorms(self.size, self.squares / self.n, self.n * self.size, large)
        self.sum, self.squares, self.count = None, 0.0, 0
        return norms


class PreviousGradient:
    """AdaptDL's: each gradient against the one before; |G|^2 = g_t . g_(t-1), tr(Sigma) = b |g_t - g_(t-1)|^2 / 2.

    Source: Qiao et al. 2021 (Pollux), arXiv:2008.12260, and adaptdl's gradient_noise_scale.py for a single replica.
    (There the average over steps is clamped at 0 when it is read.)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.previous: Tensor | None = None

    def add(self, gradient: Tensor) -> SquaredNorms | None:
        previous, self.previous = self.previous, gradient
        if previous is None:
            return None
        both = (gradient + previous) / 2
        return SquaredNorms(self.size, (gradient @ gradient + previous @ previous) / 2, 2 * self.size, both @ both)


def numbers_kept(estimator: object) -> int:
    """How many numbers an estimator holds in tensors between steps."""
    values = [v for held in vars(estimator).values() for v in (held if isinstance(held, list) else [held])]
    return sum(v.numel() for v in values if isinstance(v, Tensor))
