"""The values that cross from one layer to the next, and what a user's own function must look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 4  # measurements without which an estimate is not acted on
TOO_MANY_SKIPPED = 0.25  # share of recent measurements that were not finite, beyond which the rest is in doubt
COUPLED = "samples are coupled"  # the caveat of a loss that is no mean over samples

#: A number that may still lie on the device: reading it there is a synchronisation, so it is read late.
Scalar: TypeAlias = "float | Tensor"


@dataclass(frozen=True, slots=True)
class SquaredNorms:
    """Squared gradient norms of two batch sizes at the same weights: all that autograd hands to statistics.

    Both gradients are of the *mean* loss. A loss that sums over its batch has a gradient n times as long, which
    whoever measures divides out (`gradients.micro_batches`); left in, the larger batch would look noisier.

    Attributes:
        small_size: b, samples.
        small: |G_b|^2, gradient^2: the mean over all gradients of that size.
        large_size: B > b, samples.
        large: |G_B|^2, gradient^2.
        views: the same of other views of these gradients, by name: "adam", "group 0", ... (`gradients.views`).
    """

    small_size: int
    small: Scalar
    large_size: int
    large: Scalar
    views: Mapping[str, SquaredNorms] = field(default_factory=dict)

    def divided_by(self, factor: float) -> SquaredNorms:
        """Of gradients shorter by the root of `factor`; views are left out."""
        return SquaredNorms(self.small_size, self.small / factor, self.large_size, self.large / factor)

    @property
    def grad_sq(self) -> Scalar:
        """|G|^2 without bias; negative by chance where noise hides it (McCandlish et al. 2018, eq. A.2)."""
        b, B = self.small_size, self.large_size
        return (B * self.large - b * self.small) / (B - b)

    @property
    def trace(self) -> Scalar:
        """tr(Sigma), the variance of one example's gradient, without bias (McCandlish et al. 2018, eq. A.2)."""
        b, B = self.small_size, self.large_size
        return (self.small - self.large) / (1 / b - 1 / B)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Squared norms, and what a reader of the history should know about them.

    Attributes:
        norms: the four numbers.
        source: how they were measured: "per example", "halves" or "ranks".
        why: why that way.
        caveat: what makes them doubtful whatever their number, such as a loss that couples samples.
    """

    norms: SquaredNorms
    source: str
    why: str
    caveat: str | None = None


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """An estimate of the simple noise scale B_simple = tr(Sigma)/|G|^2 and how far it is to be believed.

    Attributes:
        grad_sq: |G|^2, gradient^2, unbiased, so it may be negative.
        trace: tr(Sigma), gradient^2.
        low: lower confidence limit of B_simple, samples; 0 where nothing can be said.
        high: upper limit; `inf` while |G|^2 is not significantly above 0.
        cautious: the one-sigma lower limit, samples, which the built-in targets steer on.
        measurements: how many measurements were pooled.
        skipped: how many recent ones were left out because they were not finite.
        drifting: whether the older and the newer half of them contradict each other.
    """

    grad_sq: float
    trace: float
    low: float
    high: float
    cautious: float
    measurements: int
    skipped: int = 0
    drifting: bool = False

    @property
    def simple(self) -> float | None:
        """B_simple, samples, or None where the estimate of |G|^2 or tr(Sigma) is not positive."""
        if self.grad_sq <= 0 or self.trace <= 0:
            return None
        return self.trace / self.grad_sq

    @property
    def doubt(self) -> str | None:
        """Why this is not to be believed as a number, if so.

        "non-finite steps": too many gradients were nan or inf; "few measurements"; "nothing resolved": not even a lower
        limit; "drifting": the noise scale moves faster than the window forgets, so that the estimate lags behind; "at
        least low": |G|^2 is lost in its noise, so there is no upper limit.
        """
        if self.skipped > TOO_MANY_SKIPPED * (self.skipped + self.measurements):
            return "non-finite steps"
        if self.measurements < ENOUGH:
            return "few measurements"
        if self.cautious <= 0:
            return "nothing resolved"
        if self.drifting:
            return "drifting"
        return "at least low" if math.isinf(self.high) else None


@dataclass(frozen=True, slots=True)
class Decision:
    """A batch size and the reason for it.

    Attributes:
        batch_size: samples, within every limit.
        reason: what bounded it: "noise scale", "step time", "pace", "max_batch_size", "memory", "target",
            or why it was held: "early", "nothing new", "unresolved", "few measurements".
    """

    batch_size: int
    reason: str


class Scale(NamedTuple):
    """What the hyperparameters of a batch are changed by.

    Attributes:
        k: batch size / base batch size.
        lr_factor: of the learning rate.
    """

    k: float = 1.0
    lr_factor: float = 1.0


#: `target=`: (noise scale or None, batch size now, progress 0..1) -> wanted batch size.
Target: TypeAlias = Callable[["NoiseScale | None", int, float], float]

#: `lr_scaling=`: (k = batch size / base batch size, noise scale or None) -> what the learning rate is multiplied by.
LRRule: TypeAlias = Callable[[float, "NoiseScale | None"], float]
