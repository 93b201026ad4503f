"""Write the tables of README.md and docs/ from the committed results, and draw the benchmark's pictures.

python -m benchmarks.tables            rewrites what stands between <!-- table NAME --> and <!-- end -->
python -m benchmarks.tables --check    fails if that would change anything
"""

from __future__ import annotations

import math
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from adaptbs.timing.duty_cycle import AT_ONCE, OVER_RUN
from benchmarks.common.markdown import load, markdown, where
from benchmarks.noise_scale import tables as noise_scale_tables
from benchmarks.quality import figures as quality_figures
from benchmarks.quality import tables as quality_tables
from benchmarks.quality.transfer_grid import tables as grid_tables
from benchmarks.quality.untuned import tables as untuned_tables

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
GROWS = 0.1  # power of the size from which a cost is said to grow with it
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def measuring() -> str:
    """What a measurement costs."""
    result = load("measuring_cost")
    kinds = ("in step", "halves", "per example", "split step")
    rows = [
        [row["model"], str(row["batch_size"]), f"{row['step_ms']:.1f} ms"]
        + [f"{row[kind]:.0%}" if kind in row else "not possible" for kind in kinds]
        for row in result["rows"]
    ]
    header = ["model", "batch", "plain step", "in the step", "two halves", "per example, own pass", "split step"]
    return markdown(header, rows) + where(result, "python -m benchmarks.cost.measuring")


def measuring_memory() -> str:
    """Bytes alive at once in a measured step, and what a trial of its size counts."""
    result = load("measuring_memory")
    kinds = ("in step, first", "in step", "in step, counted", "halves", "halves, counted")
    rows = []
    for row in result["rows"]:
        shown = [f"{row[kind] / row['step']:.2f}" if kind in row else "not possible" for kind in kinds]
        sizes = [f"{row[name] / 2**20:.1f} MiB" for name in ("step", "parameters")]
        rows.append([row["model"], row["dtype"], str(row["batch_size"]), *sizes, *shown])
    header = ["model", "weights", "batch", "step", "parameters"]
    header += ["first in the step", "later", "counted", "halves", "counted"]
    return markdown(header, rows) + where(result, "python -m benchmarks.memory.measuring")


OVERHEAD, BEYOND = 0.02, 0.005  # what is aimed at for a run's time: 1 and both of them


def holds_from(by_run: dict[str, dict[str, Any]]) -> str:
    """Steps from which on a run keeps to 1 + .02 + .005 with the measurements that every run makes."""
    measured, left = by_run["0.02"], OVERHEAD + BEYOND - (by_run["0"]["cpu_ratio"] - 1)
    if "measurements" not in measured:
        return "not known"
    if left <= 0:
        return "no length"
    each = measured["measuring_share"] * measured["steps"] / measured["measurements"]  # in plain steps
    return f"{math.ceil((AT_ONCE + OVER_RUN) * each / left / 100) * 100:,} steps"


def overhead() -> str:
    """Time of a whole run with adaptbs in place over that without, the batch being held."""
    result = load("overhead")
    runs = {"control": "plain again", "0": "`overhead=0`", "0.02": "0.02", "0.05": "0.05"}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(row["task"], {})[row["run"]] = row

    def show(row: dict[str, Any]) -> str:
        rounds = row["cpu_rounds"]
        return f"{row['cpu_ratio']:.3f} ({min(rounds):.3f}-{max(rounds):.3f})"

    def account(row: dict[str, Any]) -> str:
        return f"{row['measurements']:.0f}, {row['measuring_share']:.1%}" if "measurements" in row else "not known"

    rows = []
    for task, by_run in found.items():
        shown = [show(by_run[run]) for run in runs]
        plain = by_run["0"]
        measured = account(by_run["0.02"]), holds_from(by_run)
        of_steps = f"{plain['step_ms']:.1f} ms", f"{plain['steps']:,}", f"{len(plain['rounds'])}"
        rows.append([task, *of_steps, *shown, *measured])
    note = "\nThe processor's time: medians of the rounds, the lowest and highest in brackets."
    header = ["run", "plain step", "steps", "rounds", *runs.values(), "measurements at 0.02", "the 28 fit from"]
    return markdown(header, rows) + note + where(result, "python -m benchmarks.cost.overhead")


def deciding() -> str:
    """Milliseconds of a decision."""
    result = load("deciding")
    rows = [
        [row["run"], f"{row['decisions']:g}", *(f"{row[n]:.1f} ms" for n in ("median_ms", "mean_ms", "ninth_tenth_ms"))]
        for row in result["rows"]
    ]
    header = ["run", "decisions", "median", "mean", "nine in ten at most"]
    return markdown(header, rows) + where(result, "python -m benchmarks.cost.deciding")


def loader() -> str:
    """A batch of a loader whose size stays, over a stock loader's."""
    result = load("loader")

    def show(row: dict[str, Any]) -> str:
        low, high = row["quartiles"]
        return f"{row['ratio']:.3f} ({low:.3f}-{high:.3f})"

    rows = [
        [f"{row['data']}, {row['use']}", f"{row['stock_us']:,.0f} us", show(row["control"]), show(row["adaptive"]),
         f"{row['adaptive']['added_us']:+.0f} us"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["batches of 64", "stock", "stock again", "adaptbs", "added"]
    note = f"\nMedians of {result['rounds']} rounds or so, quartiles in brackets."
    command = f"python -m benchmarks.cost.loader --rounds {result['rounds']}"
    return markdown(header, rows) + note + where(result, command)


def optimizer_state(file: str = "optimizer_state", arguments: str = "") -> str:
    """What is done with optimizer and BatchNorm state as the batch grows."""
    result = load(file)

    def show(compared: dict[str, Any] | None) -> str:
        if compared is None:
            return "-"
        change, sd, se = compared["ratio"] - 1, compared["sd"], compared["se"]
        return f"{change:+.1%} (± {se:.1%}; {sd:.1%})"

    rows = [
        [f"{row['optimizer']}, {row['choice']}", f"{row['steps']:,.0f}", f"{row['loss_mean']:.3f}",
         show(row["loss"]) if row["choice"] != "left alone" else "-",
         show(row.get("after")) if row["choice"] != "left alone" else "-"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["", "steps", "final loss", "final loss, to left alone", "training loss after doublings, to left alone"]
    note = f"\nMeans of {result['seeds']} seeds, paired; in brackets standard error, and deviation between seeds."
    return markdown(header, rows) + note + where(result, f"python -m benchmarks.quality.optimizer_state{arguments}")


def lion_betas() -> str:
    """Lion with betas that follow the batch, against betas that stay."""
    result = load("lion_betas")
    rows = []
    for row in result["rows"]:
        change, se = row["loss"]["ratio"] - 1, row["loss"]["se"]
        stays = row["choice"] == "betas stay"
        rows.append([
            f"{row['lr']:g}", row["choice"], f"{row['steps']:,.0f}", f"{row['loss_mean']:.3f}",
            "-" if stays else f"{change:+.1%} (± {se:.1%})",
            "-" if stays else f"{row['better']} of {result['seeds']}",
        ])  # fmt: skip
    header = ["learning rate", "", "steps", "final loss", "to betas that stay", "seeds better"]
    note = f"\nMeans of {result['seeds']} seeds, paired; in brackets the standard error."
    return markdown(header, rows) + note + where(result, "python -m benchmarks.quality.lion_betas")


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


def demo_line() -> str:
    """The same in two sentences, under the picture."""
    result = load("demo")
    (slow, quick), (steps, fewer), (few, more), (error, ours) = (
        (result["table"][key]["fixed"], result["table"][key]["adaptive"])
        for key in ("seconds", "steps", "samples", "rmse_minutes")
    )
    quicker = f"{quick:.0f} seconds in place of {slow:.0f}"
    as_good = f"for a held-out error of {ours:.1f} minutes in place of {error:.1f}"
    fewer_steps = f"{fewer:,} steps in\nplace of {steps:,}, with {more / few:.1f} times the samples"
    return f"{quicker}, {as_good}: {fewer_steps}. One run each.\n" + where(result, "make demo")


def memory() -> str:
    """Searches for the largest batch that fits, on simulated devices."""
    result = load("memory")
    rows = [
        [row["kind"], row["name"], f"{row['trials']:.1f} ({row['trials_most']})",
         f"{row['ran_out']:.1f} ({row['ran_out_most']})", *(str(row[key]) for key in ("fails", "never_run")),
         str(row["over_headroom"]), f"{row['shortfall_95']:.0%}", str(row["short"])]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["memory", "search", "trials (most)", "ran out (most)", "training then runs out", "never run",
              "beyond nine tenths", "short by (95th percentile)", "short by over 2 %"]  # fmt: skip
    peers = ", ".join(f"{name} {number}" for name, number in result["peers"].items())
    note = f"\nOf {result['rows'][0]['devices']:,} devices each; {peers}."
    return markdown(header, rows) + note + where(result, "python -m benchmarks.memory.search")


def scale() -> str:
    """Cost against size: the rows that grow, the worst first, and those that do not."""
    result = load("scale")

    def show(figure: float, unit: str) -> str:
        if unit != "bytes" or figure < 1e4:
            return f"{figure:,.0f} {unit}"
        return f"{figure / 1e3:,.0f} kB" if figure < 1e6 else f"{figure / 1e6:,.0f} MB"

    lines: dict[bool, list[list[str]]] = {True: [], False: []}
    for row in result["rows"]:
        sizes = sorted(map(int, row["figures"]))
        figures = [show(row["figures"][str(size)], row["unit"]) for size in (sizes[0], sizes[-1])]
        grows = row["law"] >= GROWS
        by = f"{sizes[0]:,} and {sizes[-1]:,} {row['by']}"
        lines[grows].append([row["what"], by, *figures, *([f"{row['law']:.1f}"] if grows else [])])
    header = ["", "at", "cost", "cost at the larger"]
    grown = markdown([*header, "power of the size"], lines[True])
    return grown + "\n" + markdown(header, lines[False]) + where(result, "python -m benchmarks.cost.scale")


def bookkeeping() -> str:
    """Microseconds beside a batch, with parameter groups."""
    beside, groups = load("bookkeeping"), load("groups")
    limits = {f"groups: {n}": 20 + n for n in (1, 3, 15, 100, 1000)}
    grouped = {"fastai's Adam, groups: 3": 20, "fastai's Adam, groups: 15": 60}
    found = [(row["case"], row["us"], row["at_most"]) for row in beside["rows"]]
    for row in groups["rows"]:
        most = grouped.get(row["case"]) or limits.get(row["case"].removeprefix("AdamW, "))
        found.append((f"setting and giving back, {row['case']}", row["us"], most))
    rows = [[case, f"{us:,.0f} us", f"{most:,.0f} us" if most else "-"] for case, us, most in found]
    return markdown(["", "takes", "to be at most"], rows) + where(
        beside, "python -m benchmarks.cost.bookkeeping` and `python -m benchmarks.cost.groups"
    )


TABLES = {
    "bookkeeping": bookkeeping,
    "memory": memory,
    "scale": scale,
    "measuring": measuring,
    "measuring_memory": measuring_memory,
    "overhead": overhead,
    "deciding": deciding,
    "demo": demo,
    "demo_line": demo_line,
    "loader": loader,
    "lion_betas": lion_betas,
    "optimizer_state": optimizer_state,
    "optimizer_state_4_epochs": partial(optimizer_state, "optimizer_state_4_epochs", " --epochs 4"),
    **noise_scale_tables.TABLES,
    **quality_tables.TABLES,
    **grid_tables.TABLES,
    **untuned_tables.TABLES,
}


def render(text: str) -> str:
    """The page with its tables written anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main(check: bool) -> int:
    pages = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    models = quality_figures.stale()
    if not check:
        for page in pages:
            page.write_text(render(page.read_text()))
        for model in models:
            quality_figures.draw(model)
    stale = [*pages, *map(quality_figures.picture, models)]
    for path in stale:
        print(("stale: " if check else "written: ") + str(path.relative_to(ROOT)))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
