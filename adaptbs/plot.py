"""Pictures: of a run's history, and of what the finder found. matplotlib is imported inside."""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

from .history import view_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .finder import BatchSizeSuggestion
    from .history import History

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # told apart by colour-blind eyes (Okabe and Ito)


def plot_history(history: History) -> Figure:
    """Noise scale with its band and the batch size, and the learning rate's factor, against samples.

    Between them, where there are any, a panel for each other noise scale: of a parameter group, in Adam's metric.
    """
    columns = history.decisions()
    samples = columns["samples"]
    figure, (*panels, bottom) = _axes(2 + len(history.views))
    names = [("noise_scale", "low", "high"), *map(view_columns, history.views)]
    for panel, (simple, low, high) in zip(panels, names, strict=True):
        size = columns["batch_size"]
        plot_noise_scale(panel, samples, columns[simple], columns[low], columns[high], also=size)
        panel.step(samples, size, where="post", color=ORANGE, label="batch size")
        panel.set_ylabel("samples")
    ends = [panel.get_ylim() for panel in panels]
    for panel, view in zip(panels[1:], history.views, strict=True):
        panel.set_title(f"Noise scale: {view}")
    for panel in panels:
        panel.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))  # one scale: they are to be compared
    plot_doubt(panels[0], columns)
    panels[0].set_title("Noise scale and batch size")
    panels[0].legend()
    bottom.step(samples, columns["lr_factor"], where="post", color=GREY)
    bottom.set_ylabel("factor")
    bottom.set_title("The learning rate is multiplied by")
    bottom.set_xlabel("samples seen")
    return figure


def plot_doubt(axes: Axes, columns: dict[str, list[Any]]) -> None:
    """A hollow marker on every estimate that is not to be believed as a number; the legend says why."""
    doubts = sorted({d for d in columns["doubt"] if d is not None} - {"no measurements"})
    points = list(zip(columns["samples"], columns["noise_scale"], columns["low"], columns["doubt"], strict=True))
    for doubt, marker in zip(doubts, cycle("osD^v<>"), strict=False):
        # Where there is no point estimate the lower limit is what can be said.
        at = [(s, simple or low) for s, simple, low, d in points if d == doubt and (simple or low)]
        if at:
            axes.plot(*zip(*at, strict=True), marker, mfc="white", mec=BLUE, ls="", zorder=3, label=f"doubt: {doubt}")


def plot_suggestion(found: BatchSizeSuggestion) -> Figure:
    """Noise, scale, and noise scale with its band and the suggestion, against samples."""
    figure, (top, bottom) = _axes(2)
    top.plot(found.samples, [n.trace for n in found.curve], color=BLUE, marker=".", label=r"noise tr($\Sigma$)")
    top.plot(found.samples, [n.grad_sq for n in found.curve], color=ORANGE, marker=".", label=r"scale $|G|^2$")
    top.set_yscale("symlog", linthresh=_smallest([n.grad_sq for n in found.curve]))
    top.set_title("Noise and scale of the gradient, smoothed")
    top.set_ylabel("gradient$^2$")
    top.legend()
    plot_noise_scale(
        bottom, found.samples, [n.simple for n in found.curve],
        [n.low for n in found.curve], [n.high for n in found.curve], also=[found.batch_size],
    )  # fmt: skip
    if found.batch_size is not None:
        bottom.axhline(found.batch_size, color=GREY, linestyle="--", label=f"use batch size {found.batch_size}")
    bottom.set_ylabel("samples")
    bottom.set_xlabel("samples seen")
    bottom.set_title("Noise scale")
    bottom.legend()
    return figure


def plot_noise_scale(axes: Axes, samples: Any, simple: Any, low: Any, high: Any, also: Any) -> None:
    """B_simple as a line, its limits as a band; an upper limit of inf runs off the top, an unknown one leaves a gap.

    The axis reaches over all that is finite, and over what is `also` drawn there.
    """
    nan = float("nan")
    line = [nan if s is None else s for s in simple]
    known = [v for v in (*simple, *low, *high, *also) if v is not None and math.isfinite(v) and v > 0]
    top = 2 * max([1.0, *known])
    bottom = max(1.0, min(known, default=1.0) / 2)
    below = [nan if v is None else max(v, bottom) for v in low]
    above = [nan if v is None else min(v, top) for v in high]
    axes.fill_between(samples, below, above, color=BLUE, alpha=0.2, linewidth=0, label="confidence band")
    axes.plot(samples, line, color=BLUE, marker=".", label=r"$B_{simple}$")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(bottom, top)


def _axes(rows: int) -> tuple[Figure, Any]:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "adaptbs[plot]"') from error
    return plt.subplots(rows, 1, sharex=True, figsize=(8, 3 * rows), layout="constrained")


def _smallest(values: list[float]) -> float:
    return min((abs(v) for v in values if v), default=1.0)
