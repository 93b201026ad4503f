"""Values that pass from one folder to the next, and the signatures of functions that a user may supply."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 4  # fewest measurements that a decision is based on
SURE = 2  # an estimate is believed up to this many times its cautious limit
TEXT_FORMAT = re.compile(r"(.?[<>^])?\d*s?")  # a format that only pads or aligns, as in a cell of a table
TOO_MANY_SKIPPED = 0.25  # largest share of non-finite recent measurements at which the finite ones are still trusted
FEW = "few measurements"  # doubt where there are fewer than ENOUGH
NOTHING = "no measurements"  # doubt where there is not one
NOT_FINITE = "non-finite steps"  # caveat where too many gradients were nan or inf
COUPLED = "samples are coupled"  # caveat for a loss that is neither a mean nor a sum over samples

#: A number that may still be on the device. Reading it synchronises with the device, so it is read late.
Scalar: TypeAlias = "float | Tensor"


@dataclass(frozen=True, slots=True)
class SquaredNorms:
    """Squared gradient norms at two batch sizes and the same weights. Statistics gets nothing else from autograd.

    For the mean gradient G_n of n independent samples E|G_n|^2 = |G|^2 + tr(Sigma)/n. Two sizes make two equations,
    linear in |G|^2 and tr(Sigma). Their solutions `grad_sq` and `trace` are linear in the two squared norms, so both
    are unbiased, also where the batches share samples (McCandlish et al. 2018, appendix A.1, arXiv:1812.06162).

    Both gradients must be of the *mean* loss. A loss that sums over n samples has a gradient n times as long. The
    measuring code divides by n (`gradients.MeanGradient`); otherwise the larger batch would look noisier.

    Attributes:
        small_size: b, samples.
        small: |G_b|^2, gradient^2, averaged over all measured gradients of that size.
        large_size: B > b, samples.
        large: |G_B|^2, gradient^2.
        views: norms of other views of the same gradients, by name: "adam", "group 0", ... (`gradients.views_of`).
    """

    small_size: int
    small: Scalar
    large_size: int
    large: Scalar
    views: Mapping[str, SquaredNorms] = field(default_factory=dict)

    def divided_by(self, factor: float) -> SquaredNorms:
        """Norms after dividing the gradients by sqrt(factor). Drops views."""
        return SquaredNorms(self.small_size, self.small / factor, self.large_size, self.large / factor)

    @property
    def grad_sq(self) -> Scalar:
        """|G|^2, gradient^2, unbiased. Noise can make it negative.

        |G|^2 = (B |G_B|^2 - b |G_b|^2)/(B - b), McCandlish et al. 2018, eq. A.2, arXiv:1812.06162.
        """
        b, B = self.small_size, self.large_size
        return (B * self.large - b * self.small) / (B - b)

    @property
    def trace(self) -> Scalar:
        """tr(Sigma), the variance of one sample's gradient, gradient^2, unbiased.

        tr(Sigma) = (|G_b|^2 - |G_B|^2)/(1/b - 1/B), McCandlish et al. 2018, eq. A.2, arXiv:1812.06162.
        """
        b, B = self.small_size, self.large_size
        return (self.small - self.large) / (1 / b - 1 / B)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Squared norms, how they were measured, and why they may be doubtful.

    Attributes:
        norms: the squared norms.
        source: how they were measured: "in step", "halves" or "ranks"; "given" to `GlobalBatch`.
        why: reason for this source, for the history.
        caveat: reason to doubt the norms that more measurements do not remove, such as a loss that couples samples. It
            may be a function that reads the device. Then it is called when the norms are read.
        wrong: True if the norms belong to something other than samples, so that the batch must not follow them.
    """

    norms: SquaredNorms
    source: str
    why: str
    caveat: str | Callable[[], str | None] | None = None
    wrong: bool = False

    def read_caveat(self) -> str | None:
        """The caveat; may wait for the device."""
        return self.caveat() if callable(self.caveat) else self.caveat


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """An estimate of the simple noise scale B_simple = tr(Sigma)/|G|^2, with its confidence limits.

    Prints as "241 (129 to 977)", or as "at least 1,671" while there is no upper limit. `float()` and number formats
    such as `f"{noise_scale:.0f}"` give `simple`.

    Attributes:
        grad_sq: |G|^2, gradient^2, unbiased, so it may be negative.
        trace: tr(Sigma), gradient^2.
        low: lower confidence limit of B_simple, samples; 0 if the measurements set no lower limit.
        high: upper confidence limit, samples; `inf` while |G|^2 is not significantly above 0.
        cautious: one-sigma lower limit, samples.
        measurements: number of pooled measurements.
        skipped: number of recent measurements left out because they were not finite.
        drifting: True if the older and the newer half of the measurements contradict each other.
        caveat: reason to doubt the number that more measurements do not remove; None if there is none.

    Source: McCandlish et al. 2018, arXiv:1812.06162.
    """

    grad_sq: float
    trace: float
    low: float
    high: float
    cautious: float
    measurements: int
    skipped: int = 0
    drifting: bool = False
    caveat: str | None = None

    @property
    def simple(self) -> float | None:
        """B_simple, samples; None if the estimate of |G|^2 or tr(Sigma) is not positive."""
        if self.grad_sq <= 0 or self.trace <= 0:
            return None
        return self.trace / self.grad_sq

    @property
    def believed(self) -> float:
        """B_simple as decisions and learning rates take it, samples: the estimate, at most twice the cautious limit.

        The estimate does not depend on the number of measurements. A lower limit rises with it, and a batch that
        followed the limit would too. So the limit counts only where the estimate is so unsure that it may be far off.
        Without a limit the batch is held, and the learning rate of a batch that has grown follows the estimate.
        """
        most, simple = SURE * self.cautious, self.simple
        return most if simple is None else min(simple, most or math.inf)

    def __str__(self) -> str:
        return noise_scale_text(self.simple, self.low, self.high)

    def __float__(self) -> float:
        if self.simple is None:
            raise ValueError(
                f"float(noise_scale): the noise scale is {self}, which is no single number. "
                "Use .low and .high, or ask for `noise_scale.simple is None` first"
            )
        return self.simple

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if TEXT_FORMAT.fullmatch(spec) else format(float(self), spec)

    @property
    def doubt(self) -> str | None:
        """Reason not to trust `simple` as a number; None if there is none.

        - the caveat: "samples are coupled", "24 rows of 16 samples", "BatchNorm over 16", or why the batch is held.
        - "non-finite steps": too many gradients were nan or inf.
        - "few measurements": fewer than `ENOUGH`.
        - "nothing resolved": the measurements do not even set a lower limit.
        - "drifting": the noise scale moves faster than the window forgets, so the estimate lags behind.
        - "at least low": |G|^2 is lost in its noise, so there is no upper limit.
        """
        if self.caveat is not None:
            return self.caveat
        if self.skipped > TOO_MANY_SKIPPED * (self.skipped + self.measurements):
            return NOT_FINITE
        if self.measurements < ENOUGH:
            return FEW
        if self.cautious <= 0:
            return "nothing resolved"
        if self.drifting:
            return "drifting"
        return "at least low" if math.isinf(self.high) else None


def noise_scale_text(simple: float | None, low: float, high: float) -> str:
    """B_simple and its limits, samples, as text: "241 (129 to 977)" or "at least 1,671"."""
    if math.isinf(high):
        return f"at least {samples_text(low)}" if low > 0 else "not known yet"
    limits = f"{samples_text(low)} to {samples_text(high)}"
    return limits if simple is None else f"{samples_text(simple)} ({limits})"


def samples_text(samples: float) -> str:
    """A number of samples as text: whole, but "0.3" in place of 0 where it is below 1."""
    return f"{samples:.1g}" if 0 < samples < 0.95 else f"{samples:,.0f}"


@dataclass(frozen=True, slots=True)
class Decision:
    """A batch size and the reason for it.

    Attributes:
        batch_size: samples, within every limit.
        reason: the limit that set the size ("noise scale", "step time", "pace", "max_batch_size", "memory", "target"),
            or why it was held ("early", "nothing new", "unresolved", "few measurements", `COUPLED`).
    """

    batch_size: int
    reason: str


class Scale(NamedTuple):
    """Factors by which the hyperparameters of a batch change.

    Attributes:
        k: batch size / base batch size.
        lr_factor: factor on the learning rate.
        longest: the learning rate is raised to at most this many times the largest that the schedule has.
    """

    k: float = 1.0
    lr_factor: float = 1.0
    longest: float = math.inf


class Found(Protocol):
    """The part of the result of `bs_find` that `prior=` reads."""

    @property
    def curve(self) -> tuple[NoiseScale, ...]:
        """Estimates, the best one last."""
        ...


#: `prior=`: what is known of the noise scale before a run.
Prior: TypeAlias = "NoiseScale | Found"

#: `target=`: (noise scale or None, current batch size, progress 0..1) -> wanted batch size, samples.
Target: TypeAlias = Callable[["NoiseScale | None", int, float], float]

#: `log=`: (values by name, samples seen so far) -> anything, which is ignored.
LogFunction: TypeAlias = Callable[[dict[str, "float | str"], int], object]

#: `lr_scaling=`: (k = batch size / base batch size, noise scale or None) -> factor on the learning rate.
LRRule: TypeAlias = Callable[[float, "NoiseScale | None"], float]
