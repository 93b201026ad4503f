"""docs/images/time_to_quality_*.png: held-out error against modelled time, a panel a task.

`python -m benchmarks.tables` draws them where they are stale.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from benchmarks.quality.compared import Compared, compared
from benchmarks.quality.margins import MEASURES
from benchmarks.quality.results import FOLDER
from benchmarks.quality.rules import SIZES
from benchmarks.quality.tables import MODELS

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DIGEST = "Results"  # name of the picture's entry that holds their digest
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's, told apart by any eye
STARTS = {16: "v", 64: "o", 256: "^"}
TICKS = {"gpu": (0.03, 0.1, 0.3, 1, 3), "compute": (0.6, 0.8, 1, 1.5, 2)}
BEST, WORST = -2.0, 8.0  # margins, at which the axis ends; what lies beyond is drawn on its edge


def digest() -> str:
    """Of the results that are drawn: it goes into a picture, which tells by it that it is stale."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.jsonl")))).hexdigest()


def stale() -> list[str]:
    """The modelled step times whose picture is of other results than the committed ones."""
    return [model for model in MODELS if Image.open(picture(model)).info.get(DIGEST) != digest()]


def picture(model: str) -> Path:
    """The file of one."""
    return IMAGES / f"time_to_quality_{model}.png"


def draw(model: str) -> Path:
    """One figure: for a modelled step time."""
    figure, axes = plt.subplots(2, 4, figsize=(14, 7), layout="constrained")
    for ax, task in zip(axes.flat, MEASURES, strict=True):
        panel(ax, task, model)
    figure.supxlabel(f"time to train, {MODELS[model]} step, fixed 64 = 1 (measuring and deciding charged)")
    figure.supylabel("held-out error relative to fixed 64")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    path = picture(model)
    figure.savefig(path, dpi=110, metadata={DIGEST: digest()})
    plt.close(figure)
    return path


def panel(ax: Axes, task: str, model: str) -> None:
    """A task: fixed batches as a line, adaptive ones as points with the interval that the verdict is made from."""
    measure = MEASURES[task]
    lowest, highest = BEST * measure.margin, WORST * measure.margin

    def height(value: float) -> float:
        return min(max(value, lowest), highest)

    fixed = [(size, c) for size in SIZES if (c := transferred(task, size))]
    times, differences = [c.times[model] for _, c in fixed], [height(c.difference) for _, c in fixed]
    ax.plot(
        times, differences, "-", color=GREY, lw=1, marker=".", label="fixed 16 ... 4096, hyperparameters transferred"
    )
    label_sizes(ax, [size for size, _ in fixed], times, differences, highest)
    for start, marker in STARTS.items():
        if found := compared(task, f"adaptive {start} {model}"):
            point(ax, found, model, height, marker, start)
    ax.axhspan(lowest, measure.margin, color=BLUE, alpha=0.08, lw=0, label="no worse than fixed 64, by the margin")
    ax.set(xscale="log", ylim=(lowest * 1.15, highest * 1.08), title=measure.title)
    ax.title.set_fontsize(8.5)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}"))
    ax.xaxis.set_major_locator(FixedLocator(TICKS[model]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)


def transferred(task: str, size: int) -> Compared | None:
    """A fixed batch by the rule of `rules.transferred`; by beta1^k where only that has been run."""
    return compared(task, f"fixed {size}") or compared(task, f"fixed {size} beta1^k")


def label_sizes(ax: Axes, sizes: list[int], times: list[float], heights: list[float], highest: float) -> None:
    """Write the sizes at their points, from the right, where there is room; none on the axis' upper end."""
    span, last = math.log(max(times) / min(times) or 1.0), math.inf
    for size, x, y in zip(sizes, times, heights, strict=True):
        if last - math.log(x) > 0.07 * span and y < highest:
            last = math.log(x)
            ax.annotate(str(size), (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=8, color=GREY)


def point(ax: Axes, found: Compared, model: str, height, marker: str, start: int) -> None:
    """An adaptive rule, with a line to its upper limit."""
    x, y = found.times[model], height(found.difference)
    ax.plot([x, x], [y, height(found.limit)], color=ORANGE, lw=1.2)
    ax.plot(x, y, marker, color=ORANGE, ms=8, ls="", label=f"adaptive from {start}, to its upper 95 % limit")
