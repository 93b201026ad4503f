"""Steps, samples and time to the same progress at other batch sizes, from the noise scale and the step time.

One step at batch B makes progress eps_max/(1 + phi/B), so the same progress takes

    steps    S(B) = S_min (1 + phi/B)
    samples  E(B) = B S(B) = S_min (B + phi)
    time     T(B) = S(B) t(B)

Source: McCandlish et al. 2018, eq. 2.7 to 2.11, arXiv:1812.06162. Instead of their B_noise, phi is the critical batch
that decisions use, a multiple of B_simple that is larger for Adam and similar optimizers than for SGD. S_min is the
number of steps that gradients without noise would take. It is not known, and cancels in ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checks import check_size
from ..timing import Time
from ..types import samples_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BELOW = 2  # number of sizes shown below the base
ABOVE = 3  # least number of sizes shown above it
THRIFTY = 1.25  # most samples at the suggested size, relative to the base
BEYOND = 4  # the table goes up to this multiple of the critical batch; beyond it steps hardly get fewer


class Ratio(NamedTuple):
    """A prediction relative to the base batch: at B_simple (None if that is not known) and at its limits."""

    value: float | None
    low: float
    high: float

    def __str__(self) -> str:
        limits = f"{_figure(self.low)}-{_figure(self.high)}"
        return limits if self.value is None else f"{_figure(self.value)} ({limits})"


class Row(NamedTuple):
    """Steps, samples and time at one batch size, relative to the base batch. `time` is None if not known."""

    batch_size: int
    steps: Ratio
    samples: Ratio
    time: Ratio | None


def samples_ratio(phi: float, batch_size: float, base_batch_size: float) -> float:
    """Samples relative to the base, E(B)/E(B0) = (B + phi)/(B0 + phi): 1 far below phi, B/B0 far above it."""
    return 1.0 if math.isinf(phi) else (batch_size + phi) / (base_batch_size + phi)


def steps_ratio(phi: float, batch_size: float, base_batch_size: float) -> float:
    """Steps relative to the base, S(B)/S(B0) = (1 + phi/B)/(1 + phi/B0): B0/B far below phi, 1 far above it."""
    return samples_ratio(phi, batch_size, base_batch_size) * base_batch_size / batch_size


def time_ratio(phi: float, batch_size: float, base_batch_size: float, step_time: Time) -> float:
    """Time relative to the base, T(B)/T(B0) = S(B)/S(B0) * t(B)/t(B0)."""
    return steps_ratio(phi, batch_size, base_batch_size) * step_time(batch_size) / step_time(base_batch_size)


@dataclass(frozen=True, repr=False)
class TradeOff:
    """Steps, samples and time to the same progress, by batch size. Prints as a table.

    Attributes:
        base_batch_size: B0, samples, to which everything is relative.
        phi: B_simple, samples; for a run its mean over progress. None if |G|^2 was lost in its noise.
        low, high: confidence limits of B_simple, samples; high may be inf.
        step_time: t(B), seconds of a step on this device; None if not known.
        rows: one row for each batch size, from small to large.
        critical_over_simple: the critical batch, which the rows use as phi, over B_simple.
        suggested: the batch size to use, samples. For a run it is the largest row at which a sample, by the lower limit
            of the noise scale, still brings 80 % of what it brings at the base.
    """

    base_batch_size: int
    phi: float | None
    low: float
    high: float
    step_time: Time | None
    rows: tuple[Row, ...] = field(repr=False)
    critical_over_simple: float = 1.0
    suggested: int | None = None

    @property
    def critical(self) -> float | None:
        """The critical batch, samples, where a sample brings half of what it brings at a tiny batch."""
        return None if self.phi is None else self.critical_over_simple * self.phi

    def __repr__(self) -> str:
        head = ["batch size", "steps", "samples", "time"][: 3 if self.step_time is None else 4]
        cells = [head]
        for size, *ratios in self.rows:
            shown = ["1" if size == self.base_batch_size else str(ratio) for ratio in ratios if ratio is not None]
            cells.append([f"{size:,}", *shown])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.rjust(width) for c, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self._title, "", *lines, *self._example])

    @property
    def _title(self) -> str:
        low = samples_text(self.low)
        limits = f"{low} or more" if math.isinf(self.high) else f"{low} to {samples_text(self.high)}"
        known = limits if self.phi is None else f"{samples_text(self.phi)} ({limits})"
        times = "" if self.critical_over_simple == 1 else f", critical batch {self.critical_over_simple:g} times that"
        return f"To the same progress, relative to a batch of {self.base_batch_size:,}; noise scale {known}{times}:"

    @property
    def _example(self) -> list[str]:
        row = next((row for row in self.rows if row.batch_size == self.suggested), None)
        if row is None or row.batch_size == self.base_batch_size:
            as_it_is = "" if row is None else ", the batch that the others are compared with"
            return [] if self.suggested is None else ["", f"To use: {self.suggested:,}{as_it_is}."]
        named = {"steps": row.steps, "samples": row.samples, "time": row.time}
        shown = {name: str(r) if r.value is None else _figure(r.value) for name, r in named.items() if r is not None}
        told = [f"{figure} times the {name}" for name, figure in shown.items()]
        return ["", f"To use: {row.batch_size:,}. Instead of {self.base_batch_size:,} it would take {', '.join(told)}."]

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of equal length: batch_size, and steps, samples and time, each also with `_low` and `_high`."""
        columns: dict[str, list[Any]] = {"batch_size": [row.batch_size for row in self.rows]}
        for name in ("steps", "samples", "time"):
            ratios = [getattr(row, name) or (None, None, None) for row in self.rows]
            columns |= zip((name, f"{name}_low", f"{name}_high"), map(list, zip(*ratios, strict=True)), strict=True)
        return columns

    def plot(self) -> Figure:
        """Plot steps, samples and time relative to the base, with their bands, against batch size."""
        from .plot_trade_off import plot_trade_off

        return plot_trade_off(*self._drawn)

    def draw(self, axes: Axes) -> None:
        """Draw the same plot into a given panel."""
        from .plot_trade_off import draw_trade_off

        draw_trade_off(axes, *self._drawn)

    @property
    def _drawn(self) -> tuple[dict[str, list[Any]], int, float | None, str, int | None]:
        name = "noise scale" if self.critical_over_simple == 1 else "critical batch"
        return self.to_dict(), self.base_batch_size, self.critical, name, self.suggested


def trade_off_at(
    phi: float | None,
    low: float,
    high: float,
    *,
    base_batch_size: int,
    largest: float,
    step_time: Time | None = None,
    critical_over_simple: float = 1.0,
    suggested: int | None = None,
) -> TradeOff:
    """The trade-off at one noise scale.

    Args:
        phi: B_simple, samples, or None.
        low, high: confidence limits of B_simple, samples; high may be inf.
        base_batch_size: B0, samples. The sizes shown are B0 times powers of 2.
        largest: largest size that may be shown, samples.
        step_time: t(B), seconds of a step by batch size.
        critical_over_simple: the critical batch over B_simple (`decision.critical_over_simple`).
        suggested: the batch size to use, samples; None if there is none.

    Raises:
        TypeError: if `base_batch_size` is not an integer.
        ValueError: if `base_batch_size` is below 1.
    """
    check_size("base", base_batch_size)
    base = int(base_batch_size)

    def ratio(of: Callable[[float], float]) -> Ratio:
        limits = sorted(of(critical_over_simple * simple) for simple in (low, high))
        return Ratio(None if phi is None else of(critical_over_simple * phi), *limits)

    def row(size: int) -> Row:
        return Row(
            size,
            ratio(lambda phi: steps_ratio(phi, size, base)),
            ratio(lambda phi: samples_ratio(phi, size, base)),
            ratio(lambda phi: time_ratio(phi, size, base, step_time)) if step_time is not None else None,
        )

    sizes = _sizes(base, BEYOND * critical_over_simple * (low if phi is None else phi), largest)
    return TradeOff(base, phi, low, high, step_time, tuple(map(row, sizes)), critical_over_simple, suggested)


def trade_off_of_run(
    columns: Mapping[str, Sequence[Any]],
    step_time: Time | None,
    *,
    base: int | None = None,
    largest: float,
    critical_over_simple: float = 1.0,
) -> TradeOff:
    """The trade-off of a run from its history, at the noise scale's mean over the run.

    A run at the fixed batch B takes S(B) = integral of (1 + phi/B) ds steps, with s its progress in noise-free steps.
    That is S_min (1 + mean(phi)/B) with the mean over s, so the formulas for one noise scale hold. n samples in batches
    of B are n/B steps and make n/(B + phi) of progress, the weight of each stretch of the run (McCandlish et al. 2018,
    appendix D, arXiv:1812.06162).

    Args:
        columns: `history.decisions()`.
        step_time: t(B), seconds of a step by batch size.
        base: B0, samples of an optimizer step. None means the size that the run began with.
        largest: largest size that may be shown, samples.
        critical_over_simple: the critical batch over B_simple, as for `trade_off_at`.

    Raises:
        RuntimeError: if no noise scale has been measured yet.
        TypeError: if `base` is not an integer.
        ValueError: if `base` is below 1.
    """
    sizes, ends = columns["global_batch_size"], columns["samples"]
    # An estimate describes the samples before its decision, whose batch size the previous decision set. Stretches
    # without a point estimate are left out, which assumes that they resemble the others.
    stretches = [
        (ends[i] - ends[i - 1], sizes[i - 1], columns["noise_scale"][i], columns["low"][i], columns["high"][i])
        for i in range(1, len(ends))
        if columns["low"][i] is not None and ends[i] > ends[i - 1]
    ]
    if not stretches:
        raise RuntimeError(
            "no noise scale has been measured yet: set overhead= above 0, and train until a decision has been made"
        )
    resolved = [stretch for stretch in stretches if stretch[2] is not None]
    samples, batch, phi, low, high = zip(*(resolved or stretches), strict=True)

    def mean(scale: Sequence[float]) -> float:
        critical = [critical_over_simple * simple for simple in scale]
        return mean_over_run(samples, batch, critical) / critical_over_simple

    found = trade_off_at(
        mean(phi) if resolved else None, mean(low), mean(high),
        base_batch_size=sizes[0] if base is None else base, largest=largest, step_time=step_time,
        critical_over_simple=critical_over_simple,
    )  # fmt: skip
    return replace(found, suggested=largest_thrifty(found.rows))


def largest_thrifty(rows: Sequence[Row]) -> int:
    """The largest size at which a sample brings 80 % of what it brings at the base, by the lower limit."""
    return max(row.batch_size for row in rows if row.samples.high <= THRIFTY)


def mean_over_run(samples: Sequence[float], batch_size: Sequence[float], phi: Sequence[float]) -> float:
    """The mean of phi over progress: sum of w phi / sum of w, with w = n/(B + phi) for n samples in batches of B.

    It rises with every phi, so the mean of the lower limits is a lower limit. It is inf if every phi is.
    """
    stretches = list(zip(samples, batch_size, phi, strict=True))
    progress = sum(n / (B + p) for n, B, p in stretches)
    noise = sum(n * (1.0 if math.isinf(p) else p / (B + p)) for n, B, p in stretches)
    return noise / progress if progress else math.inf


def _sizes(base: int, up_to: float, largest: float) -> list[int]:
    """The sizes base * 2^i of the table.

    They begin `BELOW` sizes below the base, leaving out those that are not whole. They end with the first that reaches
    `up_to` and is at least `ABOVE` sizes above the base, or with the last one within `largest`.
    """
    sizes = [*(base // 2**i for i in range(BELOW, 0, -1) if base % 2**i == 0), base]
    while sizes[-1] < max(up_to, base * 2**ABOVE) and 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    return sizes


def _figure(ratio: float | None) -> str:
    """Format with two decimals, below 0.1 with three."""
    if ratio is None:
        return "?"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"
