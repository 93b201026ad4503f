"""B_simple over an epoch of MNIST: the exact truth, our window's estimate with its band, and the article's."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch

from adaptbs.gradients.halves import HalfBatches
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.noise_scale.window import MeasurementWindow
from adaptbs.report.plot import GREY, ORANGE, plot_noise_scale
from benchmarks.common import machine
from benchmarks.noise_scale import exact
from benchmarks.noise_scale.cases import BATCH, Case, Run, Task, batches
from benchmarks.noise_scale.rivals import LastBatch

EPOCH = Case("MLP", "SGD", 0.01, 0)
TRUTHS = 24  # points of the truth over the epoch
EVERY = 4  # steps between two points of our curve
CONFIDENCE = 0.9
PAPER = (50, 900)  # McCandlish et al. 2018 on MNIST: at the start, and on average
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "noise_scale_epoch.png"


def run(task: Task, seed: int = 2018) -> dict:
    """One epoch of batch 128 with SGD .01, every step measured."""
    training = Run(EPOCH, task, seed)
    samples = len(task.data[0])
    steps = samples // BATCH
    halves = HalfBatches(training.model, BatchLoss(task.loss_func))
    window, article = MeasurementWindow(samples), LastBatch(BATCH)
    result: dict[str, list] = {"truth": [], "ours": [], "article": []}
    truth_at = {round(i * (steps - 1) / (TRUTHS - 1)) for i in range(TRUTHS)}
    source = itertools.islice(batches(task, BATCH, torch.Generator().manual_seed(seed)), steps)
    for step, batch in enumerate(source):
        if step in truth_at:
            true = exact.by_example(training.model, task.loss_func, *task.data)
            result["truth"].append([step * BATCH, _short(true.trace / true.grad_sq)])
        norms = halves.measure(batch)
        assert norms is not None
        window.add(step * BATCH, norms)
        if step % EVERY == EVERY - 1:
            ours = window.estimate(CONFIDENCE)
            assert ours is not None
            result["ours"].append([step * BATCH, _short(ours.simple), _short(ours.low), _short(ours.high)])
        if article.add(training.step(batch)) is not None:
            result["article"].append([step * BATCH, _short(article.noise_scale)])
    return {"lr": EPOCH.lr, **result}


def _short(value: float | None) -> float | None:
    """To four digits; None for what is not known or has no end, which JSON cannot say."""
    return None if value is None or value == float("inf") else float(f"{value:.4g}")


def held(epoch: dict) -> tuple[int, int]:
    """How many of the true values lie within the band last drawn before them, and how many have one."""
    inside = []
    for samples, true in epoch["truth"]:
        before = [(low, high) for at, _, low, high in epoch["ours"] if at <= samples]
        if before:
            low, high = before[-1]
            inside.append(low <= true and (high is None or true <= high))
    return sum(inside), len(inside)


def draw() -> Path:
    """The picture, from the committed result."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    epoch = json.loads((machine.RESULTS / "estimators.json").read_text())["epoch"]
    truth, article = (list(zip(*epoch[name], strict=True)) for name in ("truth", "article"))
    samples, simple, low, high = zip(*epoch["ours"], strict=True)
    high = [float("inf") if h is None else h for h in high]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    shown = [v for v in article[1] if v > 0]
    for value in PAPER:
        axes.axhline(value, color=GREY, linestyle=":", linewidth=1)
        axes.annotate(f"the paper: {value}", (1, value), (-4, 3), color=GREY, fontsize="small",
                      xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")  # fmt: skip
    plot_noise_scale(axes, samples, simple, low, high, also=[*truth[1], *shown, *PAPER])
    ours, band = axes.lines[-1], axes.collections[-1]
    ours.set(marker="", label="adaptbs, two halves of each batch")
    inside, of = held(epoch)
    band.set_label(f"its {CONFIDENCE:.0%} band (holds {inside} of {of} true values)")
    (exactly,) = axes.plot(*truth, color="black", linewidth=1.8, marker="o", markersize=3.5, label="exact")
    (theirs,) = axes.plot(*article, color=ORANGE, marker="s", markersize=4, label="the article's (D1, as published)")
    axes.set_xlabel("samples seen")
    axes.set_ylabel("$B_{simple}$, samples")
    axes.set_title(f"An epoch of MNIST: MLP, SGD {epoch['lr']:g}, batch {BATCH}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(handles=[exactly, ours, band, theirs], loc="upper left")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)
    return PICTURE
