"""The tables of docs/benchmarks.md: quality and time of fixed and adaptive batches, and of the peers' rules."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.common.markdown import markdown, where
from benchmarks.quality import lengths as quality_lengths
from benchmarks.quality.compared import FIXED, Compared, compared, fastest_fixed, own_best, rows
from benchmarks.quality.margins import MEASURES
from benchmarks.quality.results import FEW, REPORTED, Part, Row, relative_differences, upper_limit
from benchmarks.quality.rules import OWN_LR_SIZES, SIZES, STEP_TIMES

COMMAND = "python -m benchmarks.quality --data DIR"
MODELS = {"gpu": "GPU-like", "compute": "compute-bound"}
NOT_RUN = "-"


def task_table(task: str) -> str:
    """Every rule on one task."""
    lines = []
    for title, rule in _rules(task):
        if found := compared(task, rule):
            cells = [_metric(found.metric), str(found.seeds), *_difference(found), *_work(found), *_times(found)]
            lines.append([title, *cells])
    header = ["rule", MEASURES[task].metric, "seeds", "difference (limit)", "no worse", "steps", "samples"]
    header += [f"time, {title}" for title in MODELS.values()] + [f"to target, {title}" for title in MODELS.values()]
    return markdown(header, lines) + _where("fixed")


def _rules(task: str) -> Iterator[tuple[str, str]]:
    """(title, rule) in the order shown."""
    yield from ((f"fixed {size}", f"fixed {size}") for size in SIZES)
    yield from ((f"fixed {size}, beta1^k", f"fixed {size} beta1^k") for size in SIZES)
    for size in sorted(OWN_LR_SIZES):
        if (rule := own_best(task, size)) and rule.lr_multiplier != 1:
            yield rule.name.replace("lr x", "at its own best learning rate, x "), rule.name
    for start in (64, 16, 256):
        yield from ((f"**adaptive from {start}**, {MODELS[m]}", f"adaptive {start} {m}") for m in STEP_TIMES)
    yield "adaptive from 256 at the best learning rate there, GPU-like", "adaptive 256, its own lr, gpu"
    yield "largest that fits, untransferred", "fixed 4096 untransferred"
    yield "twice the batch every epoch, LR untouched", "x2 per epoch"
    yield "AdaScale, fixed 512", "AdaScale 512"
    yield from ((f"ramp without a signal, as adaptive {MODELS[m]}", f"ramp like {m}") for m in STEP_TIMES)


def readme() -> str:
    """Adaptive from 64 over fixed 64, and the rows in which something else is quicker: what the README says."""
    lines, room, full = [], [], []
    for task, measure in MEASURES.items():
        ours, best = compared(task, "adaptive 64 gpu"), fastest_fixed(task, "gpu", SIZES)
        if ours is None:
            continue
        room.append(ours)
        lines.append([measure.title, *_over_fixed(ours, "gpu", measure.margin)])
        if best and best[1].times["gpu"] < ours.times["gpu"]:
            lines.append([f"- a fixed {best[0]:,} instead", *_over_fixed(best[1], "gpu", measure.margin)])
        if found := compared(task, "adaptive 64 compute"):
            full.append(found)
    if full:
        steps, times = _span([c.steps for c in full], ".2f"), _span([c.times["compute"] for c in full], ".2f")
        passed = f"{sum(c.passed for c in full)} of {len(full)} within it"
        lines.append(["the same tasks, on a full device", steps, times, passed])
    table = markdown(["trained from 64", "steps", "time", "error (its limit; at most)"], lines)
    samples = [_span([c.samples for c in kind], ".1f") for kind in (room, full)]
    paid = f"\nPaid in samples: {samples[0]} times as many, or {samples[1]} where the device is full.\n"
    return table + paid + _where("adaptive")


def _span(values: list[float], form: str) -> str:
    least, most = f"{min(values):{form}}", f"{max(values):{form}}"
    return least if least == most else f"{least} to {most}"


def _over_fixed(found: Compared, model: str, margin: float) -> list[str]:
    """Cells of steps and time over fixed 64, and of the error with the limit that it was to stay below."""
    error = f"{found.difference:+.1%} ({found.limit:+.1%}; {margin:.0%})"
    return [f"{found.steps:.2f}", f"{found.times[model]:.2f}", error if found.passed else f"**{error}**"]


def summary() -> str:
    """Adaptive from 64, a line a task."""
    lines = []
    for task, measure in MEASURES.items():
        by_model = {model: compared(task, f"adaptive 64 {model}") for model in STEP_TIMES}
        gpu, real = by_model["gpu"], cpu_ratios(task)
        if gpu is None:
            continue
        cells = [f"{measure.title}, {measure.metric.split(',')[0]}", f"{measure.margin:.0%}"]
        for model, found in by_model.items():
            verdict = f"{_verdict(found)}, {found.seeds} seeds" if found else NOT_RUN
            cells += [verdict, _faster(found.times[model]) if found else NOT_RUN]
        lines.append([*cells, _faster(gpu.steps), _faster(statistics.median(real)) if real else NOT_RUN])
    header = ["task, error", "margin"]
    for title in MODELS.values():
        header += [f"error (limit), {title}", f"faster, {title}"]
    return markdown([*header, "fewer steps, GPU-like", "faster, this CPU"], lines) + _where("adaptive")


def distance() -> str:
    """How far from the best fixed batch of each task, and how much the start matters; ratios of time to fixed 64."""
    lines = []
    for task, measure in MEASURES.items():
        best = fastest_fixed(task, "gpu", SIZES)
        starts = [compared(task, f"adaptive {start} gpu") for start in (16, 64, 256)]
        if best is None or not any(starts):
            continue
        times = [c.times["gpu"] for c in starts if c]
        cells = [f"{c.times['gpu']:.2f}, {_verdict(c)}, {c.seeds} seeds" if c else NOT_RUN for c in starts]
        own = f"{best[0]}: {best[1].times['gpu']:.2f}"
        spread = f"{max(times) / min(times):.1f}" if all(starts) else NOT_RUN
        lines.append([measure.title, own, *cells, spread])
    header = [
        "task",
        "best fixed batch: time",
        "from 16",
        "from 64",
        "from 256",
        "starts, slowest / fastest",
    ]
    return markdown(header, lines) + _where("fixed")


def ablations() -> str:
    """The default with one thing changed, from 64 on the GPU-like step time: error against fixed 64, and time."""
    ablated, default = Part("ablations").rows, "adaptive 64 gpu"
    found = rows() | ablated
    tasks = [task for task in MEASURES if any(name == task for name, _, _ in ablated)]
    lines = []
    for rule in dict.fromkeys((default, *(rule for _, rule, _ in ablated))):
        against = [compared(task, rule, found, seeds=FEW) for task in tasks]
        cells = [f"{c.difference:+.1%}, {_faster(c.times['gpu'])}" if c else NOT_RUN for c in against]
        lines.append(["as it is" if rule == default else rule, *cells])
    header = ["changed", *(MEASURES[task].title for task in tasks)]
    return markdown(header, lines) + _where("ablations")


def cpu_ratios(task: str) -> list[float]:
    """Processor seconds of adaptive over fixed runs that took turns, by seed."""
    found = Part("cpu").rows
    pairs = [(found.get((task, "adaptive 64 cpu", seed)), found.get((task, FIXED, seed))) for seed in REPORTED]
    return [a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs if a and b]


def cpu() -> str:
    """Seconds on this machine."""
    found, lines = Part("cpu").rows, []
    for task, measure in MEASURES.items():
        seeds = [s for s in REPORTED if {(task, "adaptive 64 cpu", s), (task, FIXED, s)} <= set(found)]
        if len(seeds) < 2:
            continue
        ours, fixed = ([found[task, rule, s] for s in seeds] for rule in ("adaptive 64 cpu", FIXED))
        lines.append([measure.title, *_real_pair(ours, fixed, measure.margin)])
    return markdown(["task", *REAL], lines) + _where("cpu")


def article() -> str:
    """Three one-cycle fits in a row, 512 against 64."""
    found = Part("article").rows
    seeds = [s for s in REPORTED if ("flights", "fixed 64 untransferred", s) in found]
    pairs = [[found.get(("flights", f"fixed {b} untransferred", s)) for s in seeds] for b in (512, 64)]
    ours, fixed = ([row for row in side if row] for side in pairs)
    if len(ours) < 2 or len(ours) != len(fixed):
        return markdown(["", *REAL], [])
    line = ["flights, fixed 512 against fixed 64", *_real_pair(ours, fixed, MEASURES["flights"].margin)]
    return markdown(["", *REAL], [line]) + _where("article")


REAL = ("error, / fixed 64 - 1 (upper limit)", "no worse", "steps", "processor seconds", "seconds")


def _real_pair(ours: list[Row], fixed: list[Row], margin: float) -> list[str]:
    differences = relative_differences([r["metric"] for r in ours], [r["metric"] for r in fixed])
    limit = upper_limit(differences)

    def ratio(field: str) -> str:
        values = [a[field] / b[field] for a, b in zip(ours, fixed, strict=True)]
        return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    steps = statistics.median(a["steps"] / b["steps"] for a, b in zip(ours, fixed, strict=True))
    cells = [f"{statistics.fmean(differences):+.2%} ({limit:+.2%})", "yes" if limit < margin else "**no**"]
    return [*cells, f"{steps:.2f}", ratio("cpu_seconds"), ratio("seconds")]


def lengths() -> str:
    """Samples that larger batches take for the same progress, predicted and trained."""
    part, lines = Part("lengths"), []
    for task, measure in MEASURES.items():
        for size in quality_lengths.SIZES:
            if found := quality_lengths.compared(task, size, part):
                needed = [_needed(found.needed[loss]) for loss in quality_lengths.LOSSES]
                cells = [f"{found.phi:,.0f}", f"{found.simple:.2f}", f"{found.critical:.2f}"]
                lines.append([f"{measure.title}, {size:,}", *cells, *needed])
    header = ["task, batch", "B_simple", "by B_simple", "by the critical batch"]
    header += [f"trained: {title}" for title in quality_lengths.LOSSES.values()]
    return markdown(header, lines) + _where("lengths")


def _needed(ratios: list[float]) -> str:
    """A cell of samples over the base run's: the median, and the least and the most."""
    longest = max(quality_lengths.TIMES)
    shown = [f"over {longest:g}" if r > longest else f"{r:.2f}" if r else "under 1" for r in sorted(ratios)]
    return f"{shown[len(shown) // 2]} ({shown[0]} to {shown[-1]})"


def learning_rates() -> str:
    """Held-out error by learning rate at batch 64, on the seed that chooses."""
    found = Part("base_lr").rows
    by_task: dict[str, dict[float, float | None]] = {task: {} for task in MEASURES}
    for (task, rule, _), row in found.items():
        by_task[task][float(rule.removeprefix("lr "))] = row["metric"]
    lines = []
    for task, metrics in by_task.items():
        best = min(metrics, key=lambda lr, m=metrics: m[lr] or float("inf"))
        shown = [f"{lr:g}: {_metric(metrics[lr])}" for lr in sorted(metrics)]
        lines.append([MEASURES[task].title, f"{best:g}", ", ".join(shown)])
    return markdown(["task", "chosen", "error at each"], lines) + _where("base_lr")


def _where(part: str, *others: str) -> str:
    """When and on what a part was begun, and which others the table shows beside it."""
    header = Part(part).header
    return where(header, f"{COMMAND} --only {' '.join((part, *others))}") if header else ""


def _metric(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def _difference(found: Compared) -> list[str]:
    if found.metric is None:
        return ["diverged", "**no**"]
    return [f"{found.difference:+.2%} ({found.limit:+.2%})", "yes" if found.passed else "**no**"]


def _verdict(found: Compared) -> str:
    """The difference in one cell, marked where it is not below the margin."""
    difference, no_worse = _difference(found)
    return difference if no_worse == "yes" else f"**{difference}**"


def _work(found: Compared) -> list[str]:
    return [f"{found.steps:.3f}", f"{found.samples:.2f}"]


def _times(found: Compared) -> list[str]:
    times = [f"{found.times[m]:.2f}" if m in found.times else NOT_RUN for m in MODELS]
    missed = f" ({found.missed} of {found.seeds} never)" if found.missed else ""
    targets = [
        NOT_RUN if m not in found.targets
        else (f"{t:.2f}{missed}" if (t := found.targets[m]) is not None else f"never{missed}")
        for m in MODELS
    ]  # fmt: skip
    return times + targets


def _faster(ratio: float) -> str:
    return f"{1 / ratio:.1f} x" if ratio else NOT_RUN


TABLES: dict[str, Callable[[], str]] = {
    "quality_readme": readme,
    "quality_summary": summary,
    "quality_distance": distance,
    "quality_ablations": ablations,
    "quality_cpu": cpu,
    "quality_article": article,
    "quality_lrs": learning_rates,
    "quality_lengths": lengths,
    **{f"quality_{task}": partial(task_table, task) for task in MEASURES},
}
