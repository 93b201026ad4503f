"""Plots of a run, of the finder's suggestion and of a trade-off, from plain columns. Imports matplotlib late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Values by column name, all of the same length. Unknown values are None.
Columns: TypeAlias = Mapping[str, Sequence[Any]]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
PLAIN = ("noise_scale", "low", "high")  # the history's columns of the plain noise scale


def plot_history(columns: Columns, views: Mapping[str, Sequence[str]]) -> Figure:
    """Plot noise scale with its confidence band, batch size and learning-rate factor against samples seen.

    Args:
        columns: `history.decisions()`.
        views: `history.view_columns`. Each view (a parameter group, Adam's metric) gets a panel of its own.
    """
    samples = columns["samples"]
    figure, (*panels, bottom) = _axes(2 + len(views))
    bands = [[columns[name] for name in names] for names in (PLAIN, *views.values())]
    size = columns["batch_size"]
    # All panels share these limits, so that they can be compared.
    limits = noise_scale_limits(size, *(values for band in bands for values in band))
    for panel, band in zip(panels, bands, strict=True):
        plot_noise_scale(panel, samples, *band, limits=limits)
        panel.step(samples, size, where="post", color=ORANGE, label="batch size")
        panel.set_ylabel("samples")
    for panel, view in zip(panels[1:], views, strict=True):
        panel.set_title(f"Noise scale: {view}")
    plot_doubt(panels[0], columns)
    panels[0].set_title("Noise scale and batch size")
    panels[0].legend()
    bottom.step(samples, columns["lr_factor"], where="post", color=GREY)
    bottom.set_ylabel("factor")
    bottom.set_title("The learning rate is multiplied by")
    bottom.set_xlabel("samples seen")
    return figure


def plot_doubt(axes: Axes, columns: Columns) -> None:
    """Put a hollow marker on every doubtful estimate. The legend gives the reason."""
    doubts = sorted({d for d in columns["doubt"] if d is not None} - {"no measurements"})
    points = list(zip(columns["samples"], columns["noise_scale"], columns["low"], columns["doubt"], strict=True))
    for doubt, marker in zip(doubts, cycle("osD^v<>"), strict=False):
        # Without a point estimate only the lower limit is known.
        at = [(s, simple or low) for s, simple, low, d in points if d == doubt and (simple or low)]
        if at:
            axes.plot(*zip(*at, strict=True), marker, mfc="white", mec=BLUE, ls="", zorder=3, label=f"doubt: {doubt}")


def plot_suggestion(columns: Columns, batch_size: int | None, suggestions: Mapping[str, float | None]) -> Figure:
    """Plot tr(Sigma), |G|^2, and the noise scale with its confidence band and the suggestions against samples seen.

    Args:
        columns: `suggestion.to_dict()`.
        batch_size: suggested batch size, samples; None if there is none.
        suggestions: other suggested sizes by name, samples; None for one that is not known.
    """
    figure, (top, bottom) = _axes(2)
    samples = columns["samples"]
    top.plot(samples, columns["trace"], color=BLUE, marker=".", label=r"noise tr($\Sigma$)")
    top.plot(samples, columns["grad_sq"], color=ORANGE, marker=".", label=r"scale $|G|^2$")
    top.set_yscale("symlog", linthresh=_smallest(columns["grad_sq"]))
    top.set_title("Noise and scale of the gradient, smoothed")
    top.set_ylabel("gradient$^2$")
    top.legend()
    band = [columns[name] for name in PLAIN]
    limits = noise_scale_limits([batch_size, *suggestions.values()], *band)
    plot_noise_scale(bottom, samples, *band, limits=limits)
    if batch_size is not None:
        bottom.axhline(batch_size, color=GREY, linestyle="--", label=f"use batch size {batch_size}")
    names: dict[float, list[str]] = {}
    for name, size in suggestions.items():
        if size is not None and size != batch_size:
            names.setdefault(size, []).append(name)
    for size, style in zip(sorted(names), cycle(((0, (1, 2)), (0, (4, 2, 1, 2)), (0, (1, 4)))), strict=False):
        label = f"{', '.join(names[size])}: {size:,.0f}"
        bottom.axhline(size, color=GREEN, linestyle=style, linewidth=1, label=label)
    bottom.set_ylabel("samples")
    bottom.set_xlabel("samples seen")
    bottom.set_title("Noise scale")
    bottom.legend()
    return figure


def plot_trade_off(columns: Columns, base_batch_size: int, critical: float | None, critical_name: str) -> Figure:
    """Plot steps, samples and time relative to the base batch, with their bands, against batch size.

    Leaves out the time if it is not known.

    Args:
        columns: `trade_off.to_dict()`.
        base_batch_size: B0, samples, to which everything is relative.
        critical: batch at which steps and samples are twice the fewest possible, samples; None if not known.
        critical_name: label of the critical batch in the plot.
    """
    figure, axes = _axes(1)
    figure.set_figheight(4.5)
    sizes = columns["batch_size"]
    known = columns["steps"][0] is not None  # False if only the limits are known
    for name, color, marker in (("steps", BLUE, "o"), ("samples", ORANGE, "s"), ("time", GREEN, "^")):
        if columns[f"{name}_low"][0] is None:
            continue
        band, line = (None, name) if known else (name, None)  # the one with a label is in the legend
        low, high = columns[f"{name}_low"], columns[f"{name}_high"]
        axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0, label=band)
        if known:
            axes.plot(sizes, columns[name], color=color, marker=marker, markersize=4, label=line)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.axvline(base_batch_size, color=GREY, linestyle="--", linewidth=1)
    if critical is not None and sizes[0] <= critical <= sizes[-1]:
        axes.axvline(critical, color=GREY, linestyle=":", linewidth=1.5)
        axes.annotate(
            critical_name, (critical, 1), (4, -4),
            xycoords=("data", "axes fraction"), textcoords="offset points",
            color=GREY, va="top",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes)
    bottom, top = axes.get_ylim()
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)))
    axes.set_yticks([v for i in decades for v in (10.0**i, 2 * 10.0**i, 5 * 10.0**i) if bottom <= v <= top])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"times what {base_batch_size:,} takes")
    axes.set_title("To the same progress, predicted by the noise scale")
    axes.legend()
    return figure


def noise_scale_limits(*columns: Any) -> tuple[float, float]:
    """Limits of an axis that shows all values that are finite and above 0."""
    known = [v for values in columns for v in values if v is not None and math.isfinite(v) and v > 0]
    return max(1.0, min(known, default=1.0) / 2), 2 * max([1.0, *known])


def plot_noise_scale(
    axes: Axes, samples: Any, simple: Any, low: Any, high: Any, *, limits: tuple[float, float]
) -> None:
    """Plot B_simple as a line and its limits as a band.

    An upper limit of inf reaches the top of the axis. An unknown limit leaves a gap.
    """
    nan, (bottom, top) = float("nan"), limits
    below = [nan if v is None else max(v, bottom) for v in low]
    above = [nan if v is None else min(v, top) for v in high]
    axes.fill_between(samples, below, above, color=BLUE, alpha=0.2, linewidth=0, label="confidence band")
    axes.plot(samples, [nan if s is None else s for s in simple], color=BLUE, marker=".", label=r"$B_{simple}$")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(bottom, top)


def _axes(rows: int) -> tuple[Figure, Any]:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "adaptbs[plot]"') from error
    return plt.subplots(rows, 1, sharex=True, figsize=(8, 3 * rows), layout="constrained")


def _smallest(values: Sequence[float]) -> float:
    return min((abs(v) for v in values if v), default=1.0)
