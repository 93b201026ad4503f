"""The one style of all pictures: readable at half width, for any colour vision, on light and dark backgrounds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
GREY = "#808080"  # as readable on black as on white

#: Colours of background and text are left to the user's own style, such as `plt.style.use("dark_background")`.
STYLE: dict[Any, Any] = {
    "font.size": 11.5,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}


def in_style(**changes: Any) -> AbstractContextManager[Any]:
    """A context in which plots are made. `changes` are rc parameters that override the style's."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "adaptbs[plot]"') from error
    style: dict[Any, Any] = {**STYLE, **changes}
    return matplotlib.rc_context(style)


def plain_numbers(axes: Axes) -> None:
    """Label the vertical axis with numbers such as 256 in place of 2^8, and 3e+07 where they would be long."""
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if y < 1e7 else f"{y:.0e}")


def in_thousands(axes: Axes) -> None:
    """Label the horizontal axis with numbers such as 20k, 30M and 4e+10, so that long runs' do not overlap."""
    axes.xaxis.set_major_formatter(lambda x, _: _short(x))


def _short(x: float) -> str:
    if x < 1e7:
        return f"{x / 1000:,.10g}k" if x else "0"
    return f"{x / 1e6:,.10g}M" if x < 1e10 else f"{x:.3g}"


def beside(axes: Axes) -> None:
    """Put the legend to the right of the panel, where it covers no data."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
