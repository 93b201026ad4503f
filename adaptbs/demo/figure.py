"""Draws the demo's picture: the adaptive run's noise scale and batch size, and the learning of both runs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..report import BLUE, GREY, ORANGE, in_style, in_thousands, plain_numbers
from .flights import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The dashes differ in grey as well.
FIXED: dict[str, Any] = {"color": ORANGE, "linestyle": (0, (4, 2)), "linewidth": 1.8}
ADAPTIVE: dict[str, Any] = {"color": BLUE, "linewidth": 2.0}


def draw(fixed: Run, adaptive: Run, history: Mapping[str, Sequence[Any]], headline: str) -> "Figure":
    """Draw four panels against samples seen: noise scale with its interval, batch size, learning rate, training error.

    Args:
        fixed, adaptive: the two runs.
        history: the callback's history as columns `samples`, `noise_scale`, `low` and `high`.
        headline: the figure's title.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with in_style(**{"figure.facecolor": "white"}):  # a file for any page, also where the user's style is dark
        # pyplot is avoided, because it would choose a backend for the whole process.
        figure = Figure(figsize=(11, 6.6), dpi=150, layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09))
        axes = figure.subplots(2, 2, sharex=True)
        figure.suptitle(headline, x=0.012, ha="left", fontsize=14.5)
        _noise_scale(axes[0, 0], history, fixed, adaptive)
        _batch_size(axes[0, 1], fixed, adaptive)
        _learning_rate(axes[1, 0], fixed, adaptive)
        _training_error(axes[1, 1], fixed, adaptive)
        for axis in axes[1]:
            axis.set_xlabel("flights seen")
            in_thousands(axis)
        axes[0, 0].set_xlim(0, max(fixed.samples[-1], adaptive.samples[-1]))
        # Drawn inside the context, because matplotlib reads the style again when it lays out text.
        figure.draw_without_rendering()
    return figure


def _noise_scale(axis: Any, history: Mapping[str, Sequence[Any]], fixed: Run, adaptive: Run) -> None:
    """Draw B_simple with its confidence band. The band reaches the top of the panel if there is no upper limit."""
    axis.set_title("Noise scale measured, with its interval")
    known = [i for i, low in enumerate(history["low"]) if low is not None]
    axis.set_yscale("log", base=2)
    if not known:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
        return
    at, low, high, value = (
        np.array([_or_nan(history[name][i]) for i in known]) for name in ("samples", "low", "high", "noise_scale")
    )
    finite = value[np.isfinite(value)]
    # The axis covers the estimates and the lower limits. The upper limits of badly resolved intervals would stretch it.
    sizes = np.concatenate([fixed.batch_size, adaptive.batch_size, finite, low[low > 1]])
    bottom, top = sizes.min() / 4, 4 * sizes.max()
    band = {"color": ADAPTIVE["color"], "alpha": 0.18, "linewidth": 0}
    axis.fill_between(at, low.clip(bottom, top), high.clip(bottom, top), **band)
    axis.plot(at, value, marker=".", markersize=9, label=r"$B_\mathrm{simple}$", **ADAPTIVE)
    axis.step(adaptive.samples, nominal(adaptive), where="pre", color="black", linewidth=1, label="batch size")
    axis.set_ylim(bottom, top)
    plain_numbers(axis)
    axis.set_ylabel("flights")
    axis.legend(loc="lower right", ncols=2)


def _batch_size(axis: Any, fixed: Run, adaptive: Run) -> None:
    """Draw the batch size of each step."""
    first, largest = adaptive.batch_size[0], adaptive.batch_size.max()
    axis.set_title(f"Batch size: {first:,} " + (f"to {largest:,}" if largest > first else "throughout"))
    for run, style, name in ((adaptive, ADAPTIVE, "adaptive"), (fixed, FIXED, "fixed")):
        axis.step(run.samples, nominal(run), where="pre", label=name, **style)
    axis.set_yscale("log", base=2)
    axis.set_ylim(min(fixed.batch_size.min(), first) / 1.5, 1.5 * largest)
    plain_numbers(axis)
    axis.set_ylabel("flights a step")
    axis.legend(loc="upper left")


def _learning_rate(axis: Any, fixed: Run, adaptive: Run) -> None:
    """Draw the learning rate of each step."""
    axis.set_title("Learning rate used")
    for run, style, name in ((adaptive, ADAPTIVE, "adaptive"), (fixed, FIXED, "fixed")):
        axis.plot(run.samples, run.lr, label=name, **style)
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axis.yaxis.get_offset_text().set_visible(False)
    exponent = math.floor(math.log10(max(fixed.lr.max(), adaptive.lr.max())))
    axis.set_ylabel(rf"learning rate, $10^{{{exponent}}}$")
    axis.legend(loc="upper right")


def _training_error(axis: Any, fixed: Run, adaptive: Run) -> None:
    """Draw the training loss as an error in minutes, smoothed over equally many flights, and the held-out error."""
    axis.set_title("Training loss as an error, and held-out error")
    settled: list[NDArray[np.float64]] = []
    for run, style, name in ((adaptive, ADAPTIVE, "adaptive"), (fixed, FIXED, "fixed")):
        at, error = smoothed(run)
        axis.plot(at, error, **style)
        ends = run.samples[np.array(run.epoch_steps) - 1]
        marker = {"color": style["color"], "linestyle": "", "clip_on": False, "zorder": 3}
        marker |= (
            {"marker": "o", "markersize": 8} if run is adaptive else {"marker": "D", "mfc": "none", "markersize": 11}
        )
        axis.plot(ends, run.epoch_rmse, label=f"held out, {name}", **marker)
        settled += [error[at > 0.08 * at[-1]], np.array(run.epoch_rmse)]
    # The axis leaves out the first steps, because an untrained model's error would flatten the rest of the curves.
    shown = np.concatenate(settled)
    axis.set_ylim(0.97 * shown.min(), 1.03 * shown.max())
    axis.set_ylabel("RMSE, minutes")
    axis.legend(loc="upper right", ncols=2)


def nominal(run: Run) -> NDArray[np.int64]:
    """The batch size of each step, where an epoch's short last batch counts as long as the batch before it.

    The short batch is no decision of the run, and would show as a dip.
    """
    size = run.batch_size.copy()
    following = np.append(size[2:], size[-2:-1])
    short = (size[1:] < size[:-1]) & (size[1:] < following)
    size[1:][short] = size[:-1][short]
    return size


def smoothed(run: Run, window: float = 0.03) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(samples seen, training RMSE in minutes over the last `window` of the run).

    The error is averaged over flights and not over steps, so that runs with different batch sizes can be compared.

    Args:
        run: a run.
        window: share of the run's samples to average over.
    """
    total = np.concatenate([[0], run.samples])
    error = np.concatenate([[0.0], (run.train_rmse**2 * run.batch_size).cumsum()])
    ends = np.unique(np.linspace(1, len(run.samples), 300).astype(int))
    starts = np.searchsorted(total, total[ends] - window * total[-1], side="right") - 1
    starts = starts.clip(0, ends - 1)
    return total[ends], np.sqrt((error[ends] - error[starts]) / (total[ends] - total[starts]))


def _or_nan(value: float | None) -> float:
    """Replace None with nan, at which matplotlib leaves a gap."""
    return math.nan if value is None else value

