"""The tables of docs/benchmarks.md on tasks nobody tuned for."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterable, Mapping

from benchmarks.common.markdown import markdown
from benchmarks.quality.adaptive import Adaptive
from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.results import Key, Row
from benchmarks.quality.untuned import predictors, variants
from benchmarks.quality.untuned import yardstick as runs
from benchmarks.quality.untuned.ablations import CONSTANTS, WITHIN_RATE
from benchmarks.quality.untuned.cells import error, made_by, rows_of, times_faster
from benchmarks.quality.untuned.compared import (
    DEFAULT,
    FAILED,
    FULL,
    HALF_AGAIN,
    LARGER,
    MEASURED,
    OF_EPOCHS,
    PRIOR,
    PRIOR_TASKS,
    RATES,
    STARTS,
    TWICE_AS_LONG,
    Pairs,
    pairs,
)
from benchmarks.quality.untuned.persistence import EARLY, MIDDLE, name_of, persistence

NOT_RUN = "-"


def _beside(part: str) -> dict[Key, Row]:
    """The rows of a part, and on the same seeds those of fixed 64 and of the default."""
    rows = rows_of(part)
    seeds = {seed for _, _, seed in rows}
    return {key: row for key, row in rows_of("fixed", "choosing").items() if key[2] in seeds} | rows


def _tasks(rows: Mapping[Key, Row], rule: str) -> list[str]:
    """Tasks that a rule was run on, in the order of the margins."""
    run = {task for task, name, _ in rows if name == rule}
    return [task for task in UNTUNED if task in run]


def _summary(found: Iterable[Pairs]) -> list[str]:
    """The last row: how many are no worse, and the median over tasks."""
    found = list(found)
    passed = sum(each.verdict == "yes" for each in found)
    steps, times = (statistics.median(values) for values in zip(*((p.steps, p.times) for p in found), strict=True))
    return ["**all, median**", "", "", "", f"{passed} of {len(found)}", times_faster(steps), times_faster(times), ""]


def judged(part: str, rule: str = DEFAULT) -> str:
    """A rule on every task of a part."""
    rows = rows_of("fixed", part)
    lines, all_found = [], []
    for task in _tasks(rows, rule):
        if (found := pairs(task, rule, rows)) is None:
            continue
        all_found.append(found)
        lines.append([
            UNTUNED[task].title, f"{found.margin:.0%}", str(len(found.differences)), error(found), found.verdict,
            times_faster(found.steps), times_faster(found.times), f"{found.batch:,.0f}",
        ])  # fmt: skip
    if not lines:
        return "Not run yet.\n"
    faster = "faster, compute-bound" if rule == FULL else "faster, GPU-like"
    header = ["task", "margin", "seeds", "error (limit)", "no worse", "fewer steps", faster, "mean batch"]
    return markdown(header, [*lines, _summary(all_found)]) + made_by(part)


def ablations() -> str:
    """The default with one thing changed: error against fixed 64, and time."""
    rows = _beside("ablations")
    tasks = [task for task in UNTUNED if any(name == task for name, _, _ in rows_of("ablations"))]
    lines = []
    for rule in [DEFAULT, *dict.fromkeys(rule for _, rule, _ in rows_of("ablations"))]:
        found = [pairs(task, rule, rows) for task in tasks]
        lines.append([
            "as it is" if rule == DEFAULT else rule,
            *(f"{each.difference:+.1%}, {times_faster(each.times)}" if each else NOT_RUN for each in found),
        ])  # fmt: skip
    return markdown(["changed", *(UNTUNED[task].title for task in tasks)], lines) + made_by("ablations")


def constants() -> str:
    """Constants of the rule that play a part in few runs: as it is, and changed."""
    rows = rows_of("fixed", "constants")
    lines = []
    for usual, changed, names in CONSTANTS:
        for task in names:
            found = [pairs(task, rule.name, rows) for rule in (usual, changed)]
            if found[1]:
                cells = [f"{error(each)}, {times_faster(each.times)}" if each else NOT_RUN for each in found]
                lines.append([_value(changed), UNTUNED[task].title, *cells])
    header = ["constant", "task", "as it is: error (limit), faster", "changed"]
    return markdown(header, lines) + made_by("constants")


def _value(changed: Adaptive) -> str:
    """A constant as it is and as it is changed to."""
    ((name, value),) = changed.patches.items()
    module, _, constant = name.rpartition(".")
    return f"`{constant}` {getattr(importlib.import_module(module), constant):g} → {value:g}"


def measurements() -> str:
    """Half and twice the measurements: the mean batch, and the error."""
    rows = _beside("measurements")
    tasks = _tasks(rows, next(iter(MEASURED)))
    lines = []
    for task in tasks:
        found = [pairs(task, rule, rows) for rule in (DEFAULT, *MEASURED)]
        lines.append([
            UNTUNED[task].title,
            *(f"{p.batch:,.0f}, {p.difference:+.2%} (± {p.standard_error:.2%})" if p else NOT_RUN for p in found),
        ])  # fmt: skip
    return markdown(["task", "as it is", *MEASURED], lines) + made_by("measurements")


def prior() -> str:
    """Short runs without and with a prior."""
    rows = _beside("prior")
    lines = []
    for task in PRIOR_TASKS:
        for title, rule in (("without", DEFAULT), ("with", PRIOR)):
            if found := pairs(task, rule, rows):
                cells = [error(found), times_faster(found.steps), times_faster(found.times), f"{found.batch:,.0f}"]
                lines.append([f"{UNTUNED[task].title}, {title}", *cells])
    header = ["task", "error (limit)", "fewer steps", "faster, GPU-like", "mean batch"]
    return markdown(header, lines) + made_by("prior")


def persistences() -> str:
    """How far the gradient points where the steps before it pointed, by the learning rate."""
    rows = rows_of("persistence")
    lines = []
    for task in dict.fromkeys(name for name, _, _ in rows):
        found = {rule: row["readings"] for (name, rule, _), row in rows.items() if name == task}
        by_rate = [found.get(name_of(rate)) for rate in RATES]
        cells = [NOT_RUN if r is None else f"{persistence(r, span):.2f}" for span in (EARLY, MIDDLE) for r in by_rate]
        lines.append([UNTUNED[task].title, *cells])
    spans = [f"{100 * first:.0f}-{100 * last:.0f} %" for first, last in (EARLY, MIDDLE)]
    header = ["task", *(f"{span}, {name_of(rate)}" for span in spans for rate in RATES)]
    return markdown(header, lines) + made_by("persistence")


def failed() -> str:
    """Tasks that the default did worse on, in runs of other lengths."""
    rows = rows_of("fixed", "second_again", "third_look", "failed")
    lines = []
    for task in FAILED:
        for rule in (DEFAULT, TWICE_AS_LONG, HALF_AGAIN, OF_EPOCHS):
            if found := pairs(task, rule, rows):
                name = "adaptive" if rule == DEFAULT else rule
                lines.append([f"{UNTUNED[task].title}: {name}", error(found), found.verdict, times_faster(found.steps)])
    return markdown(["run", "error (limit)", "no worse", "fewer steps"], lines) + made_by("failed")


def larger() -> str:
    """Larger fixed batches, each at the learning rate at which it did best."""
    rows = rows_of("fixed", "larger")
    sizes = sorted({rule.batch_size for rule in LARGER})
    lines = []
    for task in dict.fromkeys(name for name, _, _ in rows_of("larger")):
        cells = []
        for size in sizes:
            found = {rule: pairs(task, rule.name, rows) for rule in LARGER if rule.batch_size == size}
            known = {rule: each for rule, each in found.items() if each}
            if known:
                rule = min(known, key=lambda rule: known[rule].difference)
                best = known[rule]
                cells.append(f"x {rule.lr_multiplier:g}: {error(best)}, {best.verdict}, {times_faster(best.times)}")
            else:
                cells.append(NOT_RUN)
        lines.append([UNTUNED[task].title, *cells])
    header = ["task", *(f"{size:,}: rate, error (limit), no worse, faster" for size in sizes)]
    return markdown(header, lines) + made_by("larger")


def learning_rates() -> str:
    """The learning rate of each task."""
    found: dict[str, dict[float, list[float]]] = {task: {} for task in UNTUNED}
    for (task, rule, _), row in rows_of("base_lr").items():
        error = float("inf") if row["metric"] is None else row["metric"]
        found[task].setdefault(float(rule.removeprefix("lr ")), []).append(error)
    lines = []
    for task, errors in found.items():
        means = {lr: statistics.fmean(values) for lr, values in sorted(errors.items())}
        if means:
            shown = ", ".join(f"{lr:g}: {mean:.4g}" for lr, mean in means.items())
            lines.append([UNTUNED[task].title, f"{min(means, key=lambda lr, m=means: m[lr]):g}", shown])
    return markdown(["task", "chosen", "mean error at each"], lines) + made_by("base_lr")


def yardstick(loss: str) -> str:
    """The critical batch that runs ask for, beside the noise scale, by learning rate."""
    rows = rows_of("yardstick")
    lines: list[list[str]] = []
    ratios: dict[tuple[float, int], list[tuple[float, str]]] = {}
    for task in [task for task in UNTUNED if any(name == task for name, _, _ in rows)]:
        for rate in RATES:
            if not (seeds := runs.complete(rows, task, rate)):
                continue
            simple = runs.simple(rows, task, rate, seeds)
            found = [runs.found(rows, task, rate, size, seeds, loss) for size in runs.SIZES]
            shown = [_over(each, simple) for each in found]
            cells = [str(len(seeds)), NOT_RUN if simple is None else f"{simple:,.0f}", *map(_samples, found), *shown]
            lines.append([f"{UNTUNED[task].title}, x {rate:g}", *cells])
            for size, each, cell in zip(runs.SIZES, found, shown, strict=True):
                if each and simple and task not in predictors.SGD:
                    ratios.setdefault((rate, size), []).append((each.phi / simple, cell))
    for rate in RATES:
        medians = [statistics.median_low(ratios.get((rate, size), [(0, NOT_RUN)]))[1] for size in runs.SIZES]
        lines.append([f"**all but SGD, median, x {rate:g}**", "", "", "", "", *medians])
    header = ["task, times its best learning rate", "seeds", "B_simple"]
    header += [f"samples, {size:,}" for size in runs.SIZES] + [f"φ / B_simple, {size:,}" for size in runs.SIZES]
    note, factors = "", runs.spreads(rows, loss)
    if factors:
        by_phi, by_simple = (f"{factor:.1f}" for factor in factors)
        note = f"\nFrom seed to seed φ differs by a factor of {by_phi} in the median, and B_simple by {by_simple}.\n"
    return markdown(header, lines) + note + made_by("yardstick")


def _samples(found: runs.Found | None) -> str:
    if found is None:
        return NOT_RUN
    longest = runs.TIMES[-1]
    return f"over {longest:g}" if found.needed > longest else f"{found.needed:.2f}" if found.needed else "under 1"


def _over(found: runs.Found | None, simple: float | None) -> str:
    """phi over B_simple: a limit if the runs did not come to the loss, "large" if the shortest was there already."""
    if found is None or simple is None:
        return NOT_RUN
    if not found.needed:
        return "large"
    ratio = found.phi / simple
    shown = f"{ratio:.1f}" if ratio < 100 else "large"
    return f"under {shown}" if found.needed == float("inf") else shown


TABLES = {
    "untuned_choosing": lambda: judged("choosing"),
    "untuned_last_look": lambda: judged("last_look"),
    "untuned_again": lambda: judged("again"),
    "untuned_second_look": lambda: judged("second_look"),
    "untuned_third_look": lambda: judged("third_look"),
    "untuned_failed": failed,
    "untuned_larger": larger,
    **{f"untuned_from_{start}": lambda rule=rule: judged("starts", rule) for rule, start in STARTS.items()},
    "untuned_full_device": lambda: judged("full_device", FULL),
    "untuned_lr_quarter": lambda: judged("lr_quarter"),
    "untuned_lr_quarter_within": lambda: judged("lr_quarter", WITHIN_RATE.name),
    "untuned_second_again": lambda: judged("second_again"),
    "untuned_sgd_again": lambda: judged("sgd_again"),
    "untuned_lr_twice": lambda: judged("lr_twice"),
    "untuned_ablations": ablations,
    "untuned_constants": constants,
    **variants.TABLES,
    "untuned_measurements": measurements,
    "untuned_persistence": persistences,
    "untuned_prior": prior,
    **predictors.TABLES,
    "untuned_lrs": learning_rates,
    **{f"untuned_yardstick_{loss}": lambda loss=loss: yardstick(loss) for loss in runs.LOSSES},
}
