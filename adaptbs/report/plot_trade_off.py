"""Plot of a trade-off, from plain columns. Imports matplotlib late."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .plot import Columns
from .style import BLUE, GREEN, GREY, ORANGE, beside, in_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = (("steps", BLUE, "o"), ("samples", ORANGE, "s"), ("time", GREEN, "^"))


def plot_trade_off(
    columns: Columns, base_batch_size: int, critical: float | None, critical_name: str, suggested: int | None
) -> Figure:
    """Plot steps, samples and time by batch size; see `draw_trade_off` for the arguments."""
    with in_style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        draw_trade_off(axes, columns, base_batch_size, critical, critical_name, suggested)
        figure.draw_without_rendering()  # inside the style, by which text is laid out
        return figure


def draw_trade_off(
    axes: Axes,
    columns: Columns,
    base_batch_size: int,
    critical: float | None,
    critical_name: str,
    suggested: int | None,
) -> None:
    """Draw steps, samples and time relative to the base batch, with their bands, against batch size.

    Leaves out the time if it is not known.

    Args:
        axes: the panel to draw in.
        columns: `trade_off.to_dict()`.
        base_batch_size: B0, samples, to which everything is relative.
        critical: batch at which steps and samples are twice the fewest possible, samples; None if not known.
        critical_name: label of the critical batch in the plot.
        suggested: the batch size to use, samples; None if there is none.
    """
    sizes = columns["batch_size"]
    known = columns["steps"][0] is not None  # False if only the limits are known
    for name, color, marker in CURVES:
        if columns[f"{name}_low"][0] is None:
            continue
        band, line = (None, name) if known else (name, None)  # the one with a label is in the legend
        low, high = columns[f"{name}_low"], columns[f"{name}_high"]
        axes.fill_between(sizes, low, high, color=color, alpha=0.25, linewidth=0, label=band)
        if known:
            axes.plot(sizes, columns[name], color=color, marker=marker, markersize=5, label=line)
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.axvline(base_batch_size, color=GREY, linewidth=0.8)
    if suggested is not None and suggested != base_batch_size and sizes[0] <= suggested <= sizes[-1]:
        axes.axvline(suggested, color=GREY, linestyle="--", linewidth=1.5, label=f"use batch size {suggested:,}")
    if critical is not None and sizes[0] <= critical <= sizes[-1]:
        axes.axvline(critical, color=GREY, linestyle=":", linewidth=1.5, label=critical_name)
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
    axes.set_title("To the same progress, as the noise scale predicts")
    beside(axes)
