"""Plots of a run and of the finder's suggestion, from plain columns. Imports matplotlib late."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeAlias

from ..types import NOTHING
from .style import BLUE, GREEN, GREY, ORANGE, beside, in_style, in_thousands, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Values by column name, all of the same length. Unknown values are None.
Columns: TypeAlias = Mapping[str, Sequence[Any]]

PLAIN = ("noise_scale", "low", "high")  # the history's columns of the plain noise scale
LARGEST = 2.0**50  # samples; an upper limit just found may be any number, and would press all others into one line
LEGEND = 36  # letters of a line in the legend, which is beside the panel and would leave no room for it
MOST_PASSES = 12  # more passes than these are not marked, because the marks would look like a grid


def plot_history(
    columns: Columns,
    views: Mapping[str, Sequence[str]],
    *,
    confidence: float = 0.9,
    critical: float | None = None,
    pass_samples: int | None = None,
) -> Figure:
    """Plot noise scale with its confidence band, batch size and learning-rate factor against samples seen.

    Args:
        columns: `history.decisions()`.
        views: `history.view_columns`. Each view (a parameter group, Adam's metric) gets a panel of its own.
        confidence: confidence of the band, 0..1.
        critical: the critical batch over B_simple. Decisions use the critical batch. None: it is not drawn.
        pass_samples: samples of a pass over the data, to mark passes. None: they are not marked.
    """
    samples, size = columns["samples"], columns["batch_size"]
    bands = [[columns[name] for name in names] for names in (PLAIN, *views.values())]
    factor = critical if critical is not None else 1.0
    deciding = [None if simple is None else factor * simple for simple in columns["noise_scale"]]
    # All panels share these limits, so that they can be compared.
    limits = noise_scale_limits(size, deciding, *(values for band in bands for values in band))
    with in_style():
        figure, (*panels, bottom) = _panels(2 + len(views))
        for panel, band in zip(panels, bands, strict=True):
            plot_noise_scale(panel, samples, *band, limits=limits, confidence=confidence)
            panel.step(samples, size, where="post", color=ORANGE, label="batch size")
            panel.set_ylabel("samples")
        top = panels[0]
        for panel, view in zip(panels[1:], views, strict=True):
            panel.set_title(f"Noise scale: {view}")
        if critical is not None and any(deciding):
            label = f"critical batch,\n{critical:g} times $B_\\mathrm{{simple}}$"
            top.plot(samples, _gaps(deciding), color=GREEN, linestyle=":", label=label)
        plot_doubt(top, columns)
        if pass_samples:
            _mark_passes(top, samples, pass_samples)
        top.set_title("Noise scale and batch size")
        beside(top)
        bottom.step(samples, columns["lr_factor"], where="post", color=GREY)
        bottom.set_ylabel("factor")
        bottom.set_title("The learning rate is multiplied by")
        bottom.set_xlabel("samples seen")
        in_thousands(bottom)
        return _laid_out(figure)


def plot_doubt(axes: Axes, columns: Columns) -> None:
    """Put a hollow marker on every doubtful estimate. The legend gives the reason."""
    doubts = sorted({d for d in columns["doubt"] if d is not None} - {NOTHING})
    points = list(zip(columns["samples"], columns["noise_scale"], columns["low"], columns["doubt"], strict=True))
    for doubt, marker in zip(doubts, cycle("osD^v<>"), strict=False):
        # Without a point estimate only the lower limit is known.
        at = [(s, min(simple or low, LARGEST)) for s, simple, low, d in points if d == doubt and (simple or low)]
        if at:
            axes.plot(
                *zip(*at, strict=True), marker, mfc=axes.get_facecolor(), mec=BLUE, ls="", zorder=3,
                label=fill(f"doubt: {doubt}", LEGEND),
            )  # fmt: skip


def plot_suggestion(
    columns: Columns,
    batch_size: int | None,
    suggestions: Mapping[str, float | None],
    *,
    confidence: float = 0.9,
    draw_trade_off: Callable[[Axes], None] | None = None,
) -> Figure:
    """Plot tr(Sigma), |G|^2, and the noise scale with its confidence band and the suggestions against samples seen.

    Args:
        columns: `suggestion.to_dict()`.
        batch_size: suggested batch size, samples; None if there is none.
        suggestions: other suggested sizes by name, samples; None for one that is not known.
        confidence: confidence of the band, 0..1.
        draw_trade_off: draws the trade-off in a panel below. None: there is no such panel.
    """
    samples = columns["samples"]
    with in_style():
        figure, (top, middle, *below) = _panels(2 if draw_trade_off is None else 3, shared=2)
        top.plot(samples, columns["trace"], color=BLUE, marker=".", label=r"noise tr($\Sigma$)")
        top.plot(samples, columns["grad_sq"], color=ORANGE, marker=".", label=r"scale $|G|^2$")
        top.set_yscale("symlog", linthresh=_smallest(columns["grad_sq"]))
        top.set_title("Noise and scale of the gradient, smoothed")
        top.set_ylabel("gradient$^2$")
        beside(top)
        band = [columns[name] for name in PLAIN]
        limits = noise_scale_limits([batch_size, *suggestions.values()], *band)
        plot_noise_scale(middle, samples, *band, limits=limits, confidence=confidence)
        if batch_size is not None:
            middle.axhline(batch_size, color=GREY, linestyle="--", label=f"use batch size {batch_size:,}")
        names: dict[float, list[str]] = {}
        for name, size in suggestions.items():
            if size is not None and size != batch_size:
                names.setdefault(size, []).append(name)
        for size, style in zip(sorted(names), cycle(((0, (1, 2)), (0, (4, 2, 1, 2)), (0, (1, 4)))), strict=False):
            label = f"{', '.join(names[size])}: {size:,.0f}"
            middle.axhline(size, color=GREEN, linestyle=style, linewidth=1, label=label)
        middle.set_ylabel("samples")
        middle.set_xlabel("samples seen")
        in_thousands(middle)
        middle.set_title("Noise scale")
        beside(middle)
        if draw_trade_off is not None:
            draw_trade_off(below[0])
        return _laid_out(figure)


def noise_scale_limits(*columns: Any) -> tuple[float, float]:
    """Limits of an axis that shows all values that are finite and above 0, up to `LARGEST`."""
    known = [min(v, LARGEST) for values in columns for v in values if v is not None and math.isfinite(v) and v > 0]
    return max(1.0, min(known, default=1.0) / 2), 2 * max([1.0, *known])


def plot_noise_scale(
    axes: Axes, samples: Any, simple: Any, low: Any, high: Any, *, limits: tuple[float, float], confidence: float
) -> None:
    """Plot B_simple as a line and its limits as a band.

    An upper limit of inf reaches the top of the axis, where a mark says so. An unknown limit leaves a gap.
    """
    nan, (bottom, top) = float("nan"), limits
    below = [nan if v is None else min(max(v, bottom), top) for v in low]
    above = [nan if v is None else min(v, top) for v in high]
    label = f"{100 * confidence:g} % band"
    axes.fill_between(samples, below, above, color=BLUE, alpha=0.25, linewidth=0, label=label)
    axes.plot(samples, _gaps(simple), color=BLUE, marker=".", label=r"$B_\mathrm{simple}$")
    unlimited = [s for s, value in zip(samples, high, strict=True) if value is not None and math.isinf(value)]
    if unlimited:
        axes.plot(
            unlimited, [top] * len(unlimited), "^", color=BLUE, markersize=5, clip_on=False, label="no upper limit"
        )
    axes.set_yscale("log", base=2)
    plain_numbers(axes)
    axes.set_ylim(bottom, top)


def _mark_passes(axes: Axes, samples: Sequence[int], pass_samples: int) -> None:
    """Mark the ends of passes over the data by vertical lines."""
    ends = range(pass_samples, max(samples, default=0) + 1, pass_samples)
    for i, end in enumerate(ends if len(ends) <= MOST_PASSES else []):
        axes.axvline(end, color=GREY, linestyle=(0, (1, 3)), linewidth=1, label=None if i else "a pass over the data")


def _gaps(values: Sequence[float | None]) -> list[float]:
    """The values, up to `LARGEST`, with nan, at which matplotlib leaves a gap, in place of None."""
    return [math.nan if value is None else min(value, LARGEST) for value in values]


def _panels(rows: int, shared: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` panels, one below the other.

    Args:
        rows: number of panels.
        shared: number of the first panels that share a horizontal axis. None: all of them.
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(8, 2.9 * rows), layout="constrained")
    panels: list[Axes] = []
    for row in range(rows):
        with_first = panels and row < (rows if shared is None else shared)
        panels.append(figure.add_subplot(rows, 1, row + 1, sharex=panels[0] if with_first else None))
    for panel in panels[: (rows if shared is None else shared) - 1]:
        panel.tick_params(labelbottom=False)
    return figure, panels


def _laid_out(figure: Figure) -> Figure:
    # Text is laid out when a figure is drawn, in the style of that moment. So draw it inside the style.
    figure.draw_without_rendering()
    return figure


def _smallest(values: Sequence[float]) -> float:
    return min((abs(v) for v in values if v), default=1.0)
