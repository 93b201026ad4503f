"""The tables of docs/benchmarks.md on tasks nobody tuned for."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterable, Mapping

from benchmarks.common.markdown import markdown, where
from benchmarks.quality.adaptive import Adaptive
from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.results import Key, Part, Row
from benchmarks.quality.untuned import predictors
from benchmarks.quality.untuned import yardstick as runs
from benchmarks.quality.untuned.ablations import CONSTANTS, OF_ROOT, OF_ROOT_BY_HALF, WITHIN_RATE
from benchmarks.quality.untuned.compared import (
    DEFAULT,
    FAILED,
    FOLDER,
    FULL,
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

COMMAND = "python -m benchmarks.quality.untuned --data DIR"
NOT_RUN = "-"


def _rows(*parts: str) -> dict[Key, Row]:
    return {key: row for part in parts for key, row in Part(part, FOLDER).rows.items()}


def _beside(part: str) -> dict[Key, Row]:
    """The rows of a part, and on the same seeds those of fixed 64 and of the default."""
    rows = _rows(part)
    seeds = {seed for _, _, seed in rows}
    return {key: row for key, row in _rows("fixed", "choosing").items() if key[2] in seeds} | rows


def _where(part: str) -> str:
    header = Part(part, FOLDER).header
    return where(header, f"{COMMAND} --only {part}") if header else ""


def _error(found: Pairs) -> str:
    return f"{found.difference:+.2%} ({found.limit:+.2%})"


def _faster(ratio: float) -> str:
    return f"{ratio:.1f} x" if ratio >= 1.1 else f"{ratio:.2f} x"


def _tasks(rows: Mapping[Key, Row], rule: str) -> list[str]:
    """Tasks that a rule was run on, in the order of the margins."""
    run = {task for task, name, _ in rows if name == rule}
    return [task for task in UNTUNED if task in run]


def _summary(found: Iterable[Pairs]) -> list[str]:
    """The last row: how many are no worse, and the median over tasks."""
    found = list(found)
    passed = sum(each.verdict == "yes" for each in found)
    steps, times = (statistics.median(values) for values in zip(*((p.steps, p.times) for p in found), strict=True))
    return ["**all, median**", "", "", "", f"{passed} of {len(found)}", _faster(steps), _faster(times), ""]


def judged(part: str, rule: str = DEFAULT) -> str:
    """A rule on every task of a part."""
    rows = _rows("fixed", part)
    lines, all_found = [], []
    for task in _tasks(rows, rule):
        if (found := pairs(task, rule, rows)) is None:
            continue
        all_found.append(found)
        lines.append([
            UNTUNED[task].title, f"{found.margin:.0%}", str(len(found.differences)), _error(found), found.verdict,
            _faster(found.steps), _faster(found.times), f"{found.batch:,.0f}",
        ])  # fmt: skip
    if not lines:
        return "Not run yet.\n"
    faster = "faster, compute-bound" if rule == FULL else "faster, GPU-like"
    header = ["task", "margin", "seeds", "error (limit)", "no worse", "fewer steps", faster, "mean batch"]
    return markdown(header, [*lines, _summary(all_found)]) + _where(part)


def ablations() -> str:
    """The default with one thing changed: error against fixed 64, and time."""
    rows = _beside("ablations")
    tasks = [task for task in UNTUNED if any(name == task for name, _, _ in _rows("ablations"))]
    lines = []
    for rule in [DEFAULT, *dict.fromkeys(rule for _, rule, _ in _rows("ablations"))]:
        found = [pairs(task, rule, rows) for task in tasks]
        lines.append([
            "as it is" if rule == DEFAULT else rule,
            *(f"{each.difference:+.1%}, {_faster(each.times)}" if each else NOT_RUN for each in found),
        ])  # fmt: skip
    return markdown(["changed", *(UNTUNED[task].title for task in tasks)], lines) + _where("ablations")


def constants() -> str:
    """Constants of the rule that play a part in few runs: as it is, and changed."""
    rows = _rows("fixed", "constants")
    lines = []
    for usual, changed, names in CONSTANTS:
        for task in names:
            found = [pairs(task, rule.name, rows) for rule in (usual, changed)]
            if found[1]:
                cells = [f"{_error(each)}, {_faster(each.times)}" if each else NOT_RUN for each in found]
                lines.append([_value(changed), UNTUNED[task].title, *cells])
    header = ["constant", "task", "as it is: error (limit), faster", "changed"]
    return markdown(header, lines) + _where("constants")


def beta1() -> str:
    """The power of Adam's beta1, on the long run."""
    rows, lines = _rows("fixed", "choosing", "beta1"), []
    names = {DEFAULT: "as it is", OF_ROOT.name: "β1^√k", OF_ROOT_BY_HALF.name: "β1^√k, progress counted by half"}
    for rule, name in names.items():
        if found := pairs("longer", rule, rows):
            worst = [f"{each:+.0%}" for each in sorted(found.differences)[-3:]]
            lines.append([name, str(len(found.differences)), _error(found), ", ".join(worst), _faster(found.times)])
    return markdown(["rule", "seeds", "error (limit)", "the worst three", "faster"], lines) + _where("beta1")


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
    return markdown(["task", "as it is", *MEASURED], lines) + _where("measurements")


def prior() -> str:
    """Short runs without and with a prior."""
    rows = _beside("prior")
    lines = []
    for task in PRIOR_TASKS:
        for title, rule in (("without", DEFAULT), ("with", PRIOR)):
            if found := pairs(task, rule, rows):
                cells = [_error(found), _faster(found.steps), _faster(found.times), f"{found.batch:,.0f}"]
                lines.append([f"{UNTUNED[task].title}, {title}", *cells])
    return markdown(["task", "error (limit)", "fewer steps", "faster, GPU-like", "mean batch"], lines) + _where("prior")


def persistences() -> str:
    """How far the gradient points where the steps before it pointed, by the learning rate."""
    rows = _rows("persistence")
    lines = []
    for task in dict.fromkeys(name for name, _, _ in rows):
        found = {rule: row["readings"] for (name, rule, _), row in rows.items() if name == task}
        by_rate = [found.get(name_of(rate)) for rate in RATES]
        cells = [NOT_RUN if r is None else f"{persistence(r, span):.2f}" for span in (EARLY, MIDDLE) for r in by_rate]
        lines.append([UNTUNED[task].title, *cells])
    spans = [f"{100 * first:.0f}-{100 * last:.0f} %" for first, last in (EARLY, MIDDLE)]
    header = ["task", *(f"{span}, {name_of(rate)}" for span in spans for rate in RATES)]
    return markdown(header, lines) + _where("persistence")


def failed() -> str:
    """Tasks that the default did worse on, in runs of other lengths."""
    rows = _rows("fixed", "second_again", "third_look", "failed")
    lines = []
    for task in FAILED:
        for rule in (DEFAULT, TWICE_AS_LONG, OF_EPOCHS):
            if found := pairs(task, rule, rows):
                name = "adaptive" if rule == DEFAULT else rule
                lines.append([f"{UNTUNED[task].title}: {name}", _error(found), found.verdict, _faster(found.steps)])
    return markdown(["run", "error (limit)", "no worse", "fewer steps"], lines) + _where("failed")


def larger() -> str:
    """Larger fixed batches, each at the learning rate at which it did best."""
    rows = _rows("fixed", "larger")
    sizes = sorted({rule.batch_size for rule in LARGER})
    lines = []
    for task in dict.fromkeys(name for name, _, _ in _rows("larger")):
        cells = []
        for size in sizes:
            found = {rule: pairs(task, rule.name, rows) for rule in LARGER if rule.batch_size == size}
            known = {rule: each for rule, each in found.items() if each}
            if known:
                rule = min(known, key=lambda rule: known[rule].difference)
                best = known[rule]
                cells.append(f"x {rule.lr_multiplier:g}: {_error(best)}, {best.verdict}, {_faster(best.times)}")
            else:
                cells.append(NOT_RUN)
        lines.append([UNTUNED[task].title, *cells])
    header = ["task", *(f"{size:,}: rate, error (limit), no worse, faster" for size in sizes)]
    return markdown(header, lines) + _where("larger")


def learning_rates() -> str:
    """The learning rate of each task."""
    found: dict[str, dict[float, list[float]]] = {task: {} for task in UNTUNED}
    for (task, rule, _), row in _rows("base_lr").items():
        error = float("inf") if row["metric"] is None else row["metric"]
        found[task].setdefault(float(rule.removeprefix("lr ")), []).append(error)
    lines = []
    for task, errors in found.items():
        means = {lr: statistics.fmean(values) for lr, values in sorted(errors.items())}
        if means:
            shown = ", ".join(f"{lr:g}: {mean:.4g}" for lr, mean in means.items())
            lines.append([UNTUNED[task].title, f"{min(means, key=lambda lr, m=means: m[lr]):g}", shown])
    return markdown(["task", "chosen", "mean error at each"], lines) + _where("base_lr")


def yardstick(loss: str) -> str:
    """The critical batch that runs ask for, beside the noise scale, by learning rate."""
    rows = _rows("yardstick")
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
    return markdown(header, lines) + note + _where("yardstick")


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
    "untuned_lr_twice": lambda: judged("lr_twice"),
    "untuned_ablations": ablations,
    "untuned_constants": constants,
    "untuned_beta1": beta1,
    "untuned_measurements": measurements,
    "untuned_persistence": persistences,
    "untuned_prior": prior,
    **predictors.TABLES,
    "untuned_lrs": learning_rates,
    **{f"untuned_yardstick_{loss}": lambda loss=loss: yardstick(loss) for loss in runs.LOSSES},
}
