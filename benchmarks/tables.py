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
        [row["problem"], row["source"], f"{row['noise_scale'] / 64:.0f}"]
        + [f"{row[k]:.1%}" for k in ("covered", "truth_above_cautious", "no_upper_limit")]
        for row in result["rows"]
    ]
    header = ["gradients", "source", "B_simple/64", "interval covers", "above the cautious limit", "no upper limit"]
    return markdown(header, rows) + where(result, "python benchmarks/coverage.py --mnist DIR")


def spread() -> str:
    """Standard deviation of log B_simple by way of pooling and samples measured; theory in brackets."""
    result, rows = load("coverage"), []
    samples = sorted({row["samples"] for row in result["spread"][0]["rows"]})
    for problem in result["spread"]:
        cells = [f"{row['sd_of_log']:.3f} ({row['theory']:.3f})" for row in problem["rows"]]
        found = {(row["way"], row["samples"]): cell for row, cell in zip(problem["rows"], cells, strict=True)}
        which = [problem["problem"], f"{problem['noise_scale']:.0f}", f"{problem['r']:.0f}"]
        ways = dict.fromkeys(row["way"] for row in problem["rows"])
        rows += [[*which, way, *(found[way, n] for n in samples)] for way in ways]
    return markdown(["gradients", "B_simple", "r", "pairs of", *(f"{n:,} samples" for n in samples)], rows)


def epoch() -> str:
    """Estimate over exact value, for one epoch of MNIST with every step measured."""
    result = load("epoch_average")
    rows = [
        [source, f"{row['mean_of_seeds']:.3f} ± {row['standard_error']:.3f}"]
        + [f"{row['lowest']:.2f}-{row['highest']:.2f}"]
        + [f"{row[k]:.3f}" for k in ("pooled", "trace", "grad_sq")]
        for source, row in result["averages"].items()
    ]
    header = ["source", "B_simple, mean of 20 seeds", "lowest-highest", "of sums over seeds", "tr(Sigma)", "\\|G\\|²"]
    return markdown(header, rows) + where(result, "python benchmarks/epoch_average.py --mnist DIR")


def windows() -> str:
    """How the interval fares while weights move, with other covariances beside the package's."""
    result, rows = load("epoch_average"), []
    for source, row in result["windows"].items():
        for kind in ("as it is", "independent", "Newey-West", "batch means"):
            shares = [row[f"{kind}: covers {what}"] for what in ("window average", "moment")]
            rows.append([source, kind, *(f"{share:.1%}" for share in shares)])
    return markdown(["source", "measurements taken as", "covers the window's average", "covers the moment"], rows)


def overhead() -> str:
    """Time of a whole run with adaptbs in place over that without, the batch being held."""
    result = load("overhead")
    runs = {"control": "plain again", "0": "`overhead=0`", "0.02": "0.02", "0.05": "0.05"}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(row["task"], {})[row["run"]] = row

    def show(row: dict[str, Any]) -> str:
        rounds = row["rounds"]
        spread = f" ({min(rounds):.3f}-{max(rounds):.3f})" if len(rounds) > 1 else ""
        return f"{row['ratio']:.3f}{spread}, {row['cpu_ratio']:.3f}"

    rows = [
        [task, f"{by_run['0']['step_ms']:.1f} ms", f"{by_run['0']['steps']:,}", *(show(by_run[run]) for run in runs)]
        for task, by_run in found.items()
    ]
    rounds = len(result["rows"][0]["rounds"])
    medians = f"median of {rounds} rounds, lowest and highest in brackets" if rounds > 1 else "one round"
    note = f"\nTime on the wall ({medians}), and of the processor."
    header = ["run", "plain step", "steps", *runs.values()]
    return markdown(header, rows) + note + where(result, "python benchmarks/overhead.py")


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


def batch_norm() -> str:
    """What batches of different sizes measure where each is normalised by its own statistics."""
    result = load("batch_norm")
    largest = {(r["model"], r["step"]): r for r in result["rows"]}  # the last of each is the largest
    rows = [
        [f"{row['model']}, step {row['step']}", str(row["size"])]
        + [f"{row[k] / largest[row['model'], row['step']][k]:.2f}" for k in ("grad_sq", "trace", "noise_scale")]
        for row in result["rows"]
    ]
    header = ["BatchNorm model", "b", "\\|G\\|² / that at 128", "tr(Sigma)", "B_simple"]
    return markdown(header, rows) + where(result, "python benchmarks/batch_norm.py --mnist DIR")


def adam_metric() -> str:
    """Noise scales beside the batch that brings half of what a step can bring."""
    result = load("adam_metric")
    rows = [
        [f"{row['model']}, step {row['step']:,}"]
        + [f"{row[k]:,.0f}" for k in ("noise_scale_plain", "half_plain", "noise_scale_adam", "half_adam")]
        for row in result["rows"]
    ]
    header = ["MNIST, by Adam", "B_simple", "half along g", "B_simple in Adam's metric", "half along g/(√v + ε)"]
    return markdown(header, rows) + where(result, "python benchmarks/adam_metric.py --mnist DIR")


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


TABLES = {
    "measuring": measuring,
    "overhead": overhead,
    "coverage": coverage,
    "spread": spread,
    "epoch": epoch,
    "windows": windows,
    "comparison": comparison,
    "batch_norm": batch_norm,
    "adam_metric": adam_metric,
    "demo": demo,
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
