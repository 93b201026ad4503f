"""The tables of docs/transfer.md: the grid's best rules beside ours and none, its parts, and choices on half of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise

import numpy as np

from benchmarks.common.markdown import markdown, where
from benchmarks.quality.transfer_grid.results import (
    GROWTHS,
    HALVES,
    SEEDS,
    Results,
    chosen_on_half,
    difference,
    mean_ranks,
    mean_regrets,
    place,
    regrets,
)  # fmt: skip
from benchmarks.quality.transfer_grid.rules import KINDS, NONE, Kind, Rule
from benchmarks.quality.transfer_grid.tasks import TASKS

COMMAND = "python -m benchmarks.quality.transfer_grid"
EDGES = (0, 0.5, 1, 2, math.inf)  # of the batch over B_simple
BEST = 4  # rules of each optimizer that are shown beside ours and none
NAMES = {"lr": "lr", "beta1": "β1", "beta2": "β2", "eps": "eps", "weight_decay": "wd"}
ABSENT = {"SGD (.9)": ("beta2", "eps", "weight_decay"), "Lion (.9, .99)": ("eps",)}  # what has one value in all rules


@cache
def _results() -> Results:
    return Results()


def _named(kind: Kind, rule: Rule) -> str:
    if rule == NONE:
        return "nothing follows"
    absent = ABSENT.get(kind.name, ())
    text = "; ".join(f"{NAMES[part]} {what}" for part, what in asdict(rule).items() if part not in absent)
    return f"**{text}** (ours then)" if rule == kind.default else text


def _marked(kind: Kind) -> tuple[int, int]:
    """The numbers of our rule and of none."""
    return kind.rules.index(kind.default), kind.rules.index(NONE)


def _lines(kind: Kind, excess: np.ndarray, shown: Sequence[int]) -> list[list[str]]:
    found, ranks, by_k = mean_regrets(excess), mean_ranks(excess), regrets(excess).mean(0)
    ours, _ = _marked(kind)
    lines = []
    for rule in shown:
        cells = [f"{place(found, rule)} of {len(found)}", f"{found[rule]:.1f} %", f"{ranks[rule]:.0%}"]
        cells += [f"{by_k[i, rule]:.1f}" for i in range(len(GROWTHS))]
        lines.append([f"{kind.name}: {_named(kind, kind.rules[rule])}", *cells, _difference(excess, rule, ours)])
    return lines


def _difference(excess: np.ndarray, rule: int, ours: int) -> str:
    mean, error = difference(excess, rule, ours)
    return "-" if rule == ours else f"{mean:+.1f} (± {error:.1f})"


def transfer_grid() -> str:
    """The best rules of each optimizer, ours and none."""
    lines = []
    for kind in KINDS:
        excess = _results().of(kind)
        found = mean_regrets(excess)
        shown = sorted({*found.argsort()[:BEST].tolist(), *_marked(kind)}, key=lambda rule: found[rule])
        lines += _lines(kind, excess, shown)
    header = ["rule", "place", "mean regret", "mean rank", *(f"k = {k}" for k in GROWTHS), "less ours"]
    done = [f"{len(_results().tasks(kind))} tasks and {_results().of(kind).shape[-1]} seeds" for kind in KINDS]
    counts = ", ".join(f"{kind.name} {count}" for kind, count in zip(KINDS, done, strict=True))
    note = f"\nIn percent of the loss of the base batch; in brackets the standard error over tasks. {counts}.\n"
    return markdown(header, lines) + note + where(_results().header, COMMAND)


def transfer_grid_parts() -> str:
    """Our rule with one hyperparameter otherwise: what each part of it is worth."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for kind in KINDS:
        excess, (ours, _) = _results().of(kind), _marked(kind)
        default = asdict(kind.default)
        for number, rule in enumerate(kind.rules):
            changed = [(part, what) for part, what in asdict(rule).items() if what != default[part]]
            if len(changed) == 1:
                cells.setdefault(changed[0], {})[kind.name] = _difference(excess, number, ours)
    parts = list(NAMES)
    lines = [
        [f"{NAMES[part]} {what}", *(by_kind.get(kind.name, "-") for kind in KINDS)]
        for (part, what), by_kind in sorted(cells.items(), key=lambda item: parts.index(item[0][0]))
    ]
    return markdown(["instead", *(kind.name for kind in KINDS)], lines) + where(_results().header, COMMAND)


def transfer_grid_phi() -> str:
    """Mean regret of ours and none by how large the batch is against B_simple."""
    lines = []
    for kind in KINDS:
        of_cells, sizes = regrets(_results().of(kind)), _results().sizes(kind)
        for title, rule in zip(("ours", "nothing follows"), _marked(kind), strict=True):
            cells = []
            for low, high in pairwise(EDGES):
                inside = (sizes > low) & (sizes <= high)
                cells.append(f"{of_cells[..., rule][inside].mean():.1f} ({inside.sum()})" if inside.any() else "-")
            lines.append([f"{kind.name}: {title}", *cells])
    header = ["batch / B_simple", *(f"up to {high:g}" for high in EDGES[1:-1]), f"more than {EDGES[-2]:g}"]
    return markdown(header, lines) + where(_results().header, COMMAND)


def transfer_grid_halves() -> str:
    """Rules chosen on one half of tasks and seeds, on the other."""
    lines = []
    for kind in KINDS:
        halves = [_results().of(kind, half) for half in HALVES]
        for title, (chosen, found) in zip(("first", "second"), chosen_on_half(halves), strict=True):
            cells = [f"{found[rule]:.1f} % ({place(found, rule)})" for rule in (chosen, *_marked(kind))]
            lines.append([f"{kind.name}, {title}", _named(kind, kind.rules[chosen]), *cells])
    header = ["chosen on the half", "rule", "its regret on the other (place)", "ours", "nothing follows"]
    return markdown(header, lines) + where(_results().header, COMMAND)


def transfer_grid_tasks() -> str:
    """Learning rate, weight decay and phi of each task and optimizer."""
    lines = []
    for task in TASKS:
        rows = [_results().row(task.name, kind.name, SEEDS[0]) for kind in KINDS]
        cells = [f"{row['lr']:g}, {row['weight_decay']:g}; {row['phi'][0]:,.0f}" if row else "-" for row in rows]
        lines.append([task.name, str(task.base_batch), *cells])
    return markdown(["task", "B0", *(kind.name for kind in KINDS)], lines) + where(_results().header, COMMAND)


TABLES = {
    "transfer_grid": transfer_grid,
    "transfer_grid_parts": transfer_grid_parts,
    "transfer_grid_phi": transfer_grid_phi,
    "transfer_grid_halves": transfer_grid_halves,
    "transfer_grid_tasks": transfer_grid_tasks,
}
