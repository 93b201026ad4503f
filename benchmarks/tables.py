"""Write the tables of README.md and docs/ from the committed results.

    python benchmarks/tables.py            rewrites what stands between <!-- table NAME --> and <!-- end -->
    python benchmarks/tables.py --check    fails if that would change anything
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def where(result: dict[str, Any], command: str) -> str:
    machine = result["machine"]
    cores = machine.get("cores") or machine.get("cpu_cores")
    device = machine.get("cuda") or f"{cores} CPU cores, no GPU"
    return f"\n`{command}` on {result['date'][:10]}: {device}, torch {machine['torch'].split('+')[0]}.\n"


def measuring() -> str:
    """What a measurement costs."""
    result = load("measuring_cost")
    kinds = ("halves", "per example", "split step")
    rows = [
        [row["model"], str(row["batch_size"]), f"{row['step_ms']:.1f} ms"]
        + [f"{row[kind]:.0%}" if kind in row else "not possible" for kind in kinds]
        for row in result["rows"]
    ]
    header = ["model", "batch", "plain step", "extra: two halves", "extra: per example", "extra: split step"]
    return markdown(header, rows) + where(result, "python benchmarks/measuring_cost.py")


def coverage() -> str:
    """How often the interval covers, by B_simple relative to the smaller batch of the halves."""
    result = load("coverage")
    rows = [
        [row["source"], str(row["ratio"])]
        + [f"{row[k]:.1%}" for k in ("covered", "truth_above_cautious", "no_upper_limit")]
        for row in result["rows"]
    ]
    header = ["source", "B_simple/64", "interval covers", "above the cautious limit", "no upper limit"]
    return markdown(header, rows) + where(result, "python benchmarks/coverage.py")


def spread() -> str:
    """Relative standard deviation of the estimate, by samples measured."""
    result = load("coverage")
    samples = sorted({row["samples"] for row in result["spread"]})
    found = {(row["source"], row["samples"]): f"{row['sd_of_log']:.3f}" for row in result["spread"]}
    rows = [[source, *(found[source, n] for n in samples)] for source in ("halves", "per example")]
    return markdown(["source", *(f"{n:,} samples" for n in samples)], rows)


TASKS = {
    "flights": ("flights, fastai tabular, RMSE", "{:.2f} min"),
    "mnist": ("MNIST, small CNN in a plain loop, NLL", "{:.4f}"),
}


def comparison() -> str:
    """Fixed 64 against adaptive from 64: medians over seeds, and the range of the ratios."""
    result = load("fixed_vs_adaptive")
    rows = []
    for name, task in result["tasks"].items():
        title, style = TASKS[name]

        def middle(side: str, field: str, task=task) -> float:
            values = sorted(run[side][field] for run in task["runs"])
            return values[len(values) // 2]

        def ratio(field: str, task=task) -> str:
            r = task["ratios"][field]
            return f"{r['median']:.2f} ({r['lowest']:.2f}-{r['highest']:.2f})"

        rows.append([
            title, style.format(middle("fixed", "metric")), style.format(middle("adaptive", "metric")),
            ratio("metric"), ratio("steps"), ratio("seconds"),
        ])  # fmt: skip
    header = ["task, error measure", "fixed 64", "adaptive", "error ratio", "steps ratio", "time ratio"]
    seeds = len(next(iter(result["tasks"].values()))["runs"])
    note = f"\nMedians of {seeds} seeds, adaptive / fixed paired by seed, lowest and highest in brackets."
    return markdown(header, rows) + note + where(result, "python benchmarks/fixed_vs_adaptive.py --mnist DIR")


def demo() -> str:
    """The run behind the picture."""
    result = load("demo")

    def show(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    names = {"rmse_minutes": "RMSE on held-out days, minutes", "seconds": "seconds, validation included"}
    rows = [
        [names.get(key, key.replace("_", " ")), show(row["fixed"]), show(row["adaptive"])]
        for key, row in result["table"].items()
    ]
    return markdown(["one run each", "fixed 64", "adaptive from 64"], rows) + where(result, "make demo")

#: Ours first; then the article's attempts, AdaptDL's, and the control.
ESTIMATORS = {
    "halves": "two halves",
    "per example": "per example",
    "micro-batches": "4 micro-batches",
    "A": "A: moving averages",
    "B": "B: 20 stored gradients",
    "C": "C: two runs",
    "D1": "D1: 20 batches, published",
    "D2": "D2: 20 batches, mended",
    "AdaptDL": "AdaptDL: previous gradient",
    "frozen D2": "D2 at frozen weights",
}
ALIKE = {"B"}  # its numbers are D2's


def estimators() -> str:
    """Estimated over true |G|^2 and tr(Sigma), pooled over windows in which the weights move."""
    result = load("estimators")
    names = {k: v for k, v in ESTIMATORS.items() if k not in ALIKE} | {"D2": "B and D2: 20 batches, mended"}
    rows = []
    for case in result["cases"]:
        resolved = case["estimators"]["halves"]["grad_sq_se"] <= result["target"]
        for quantity, label in (("grad_sq", "\\|G\\|²"), ("trace", "tr(Σ)")):
            cells = []
            for name in names:
                found = case["estimators"].get(name)
                cells.append(f"{found[quantity]:.2f} ± {found[quantity + '_se']:.2f}" if found else "not possible")
            truth = case["truth"].get("1") or case["truth"][str(result["batch_size"] // 2)]
            title = case["name"] + ("" if resolved else " *") if quantity == "grad_sq" else ""
            scale = f"{truth['noise_scale']:,.0f}" if title else ""
            rows.append([title, scale, label, *cells])
    note = "\n\\* our \\|G\\|² has a standard error above 5 % there: not resolved in the time given."
    return markdown(["case", "true B_simple", "estimate/true", *names.values()], rows) + note + where(result, ESTIMATE)


ESTIMATE = "python benchmarks/estimators.py --mnist DIR"


def batch_norm() -> str:
    """Truth of a model with BatchNorm by the batch that the gradient is of."""
    result = load("estimators")
    sizes = list(result["batch_norm"][0]["sizes"])
    rows = []
    for row in result["batch_norm"]:
        at = [row["sizes"][size] for size in sizes]
        halves = row["sizes"][str(result["batch_size"] // 2)]
        rows.append([
            row["name"],
            *(f"{a['noise_scale']:,.0f}" for a in at),
            *(f"{a['grad_sq'] / halves['grad_sq']:.2f}" for a in at),
        ])  # fmt: skip
    header = ["case", *(f"B_simple at {size}" for size in sizes), *(f"\\|G\\|² at {size}" for size in sizes)]
    return markdown(header, rows) + where(result, ESTIMATE)


def windows() -> str:
    """How single windows of 40 steps spread, beside the variance law, and the share in which |G|^2 is negative."""
    result = load("estimators")
    others = ("A", "C", "D1", "D2", "AdaptDL")
    rows = []
    for case in result["cases"]:
        cells = []
        for name in ("halves", "per example"):
            found = case["estimators"].get(name)
            cells += [
                f"{found['spread']:.2f} ({found['law']:.2f})",
                f"{found['negative']:.0%} ({found['negative_by_law']:.0%})",
            ] if found else ["not possible", ""]  # fmt: skip
        negative = [f"{case['estimators'][name]['negative']:.0%}" for name in others]
        rows.append([case["name"], str(case["windows"]), f"{case['r']:.0f}", *cells, *negative])
    header = ["case", "windows", "r", "halves: sd (law)", "negative (law)", "per example: sd (law)", "negative (law)"]
    return markdown([*header, *(f"{name}: negative" for name in others)], rows) + where(result, ESTIMATE)


def estimators_cost() -> str:
    """What each estimator adds to a plain step: time, and memory in gradients."""
    result = load("estimators")
    cost = result["cost"]
    rows = []
    for name, title in ESTIMATORS.items():
        found = [task["estimators"].get(name) for task in cost.values()]
        if any(found):
            rows.append([
                title,
                *(f"{f['extra_time']:.0%}" if f else "not possible" for f in found),
                f"{max(f['kept'] for f in found if f):.0f}",
                *(f"{f['extra_peak']:.1f}" if f else "not possible" for f in found),
            ])  # fmt: skip
    times, peaks = ([f"extra {what}, {task}" for task in cost] for what in ("time", "peak"))
    header = ["estimator", *times, "gradients kept", *peaks]
    return markdown(header, rows) + where(result, ESTIMATE)



TABLES = {
    "measuring": measuring,
    "coverage": coverage,
    "spread": spread,
    "comparison": comparison,
    "demo": demo,
    "estimators": estimators,
    "batch_norm": batch_norm,
    "windows": windows,
    "estimators_cost": estimators_cost,
}


def render(text: str) -> str:
    """The page with its tables written anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main(check: bool) -> int:
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(render(page.read_text()))
        print(("stale: " if check else "written: ") + str(page.relative_to(ROOT)))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
