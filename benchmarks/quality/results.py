"""Results of the quality benchmark: one line a run, kept as they come, and what is computed from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from benchmarks.common.machine import RESULTS, machine

FOLDER = RESULTS / "time_to_quality"
CHOOSING = range(10)  # seeds that anything may be chosen on, and nothing reported
FIRST = CHOOSING[0]
REPORTED = range(100, 110)  # seeds that are reported, and choose nothing: of the default and of fixed 64
SOME = REPORTED[:5]  # of other batches and rules
FEW = REPORTED[:3]  # of what is shown beside the default and promises nothing

Row = dict[str, Any]  # task, rule, seed, metric (None: diverged), steps, samples, ...
Key = tuple[str, str, int]


class Part:
    """The runs of one part, in a file of one JSON line a run under a line that says where and when it was begun."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.path = folder / f"{name}.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.header: Row = json.loads(lines[0]) if lines else {}
        self.rows: dict[Key, Row] = {key(row): row for row in map(json.loads, lines[1:])}

    def add(self, row: Row) -> None:
        """Keep a run, on disk at once: the benchmark may be stopped anywhere."""
        if not self.header:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self.header = {"machine": machine(), "date": now}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.header) + "\n")
        with self.path.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
        self.rows[key(row)] = row


def best_of(rules: list[str], task: str, part: Part) -> str | None:
    """The rule of least error on the choosing seed; None until all have been run."""
    rows = [part.rows.get((task, rule, FIRST)) for rule in rules]
    if None in rows:
        return None
    return min(zip(rows, rules, strict=True), key=lambda pair: pair[0]["metric"] or float("inf"))[1]


def key(row: Row) -> Key:
    return row["task"], row["rule"], row["seed"]


def rounded(value: float, digits: int = 5) -> float | None:
    """To so many significant digits; None for what is not finite, which JSON does not know."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def relative_differences(ours: Sequence[float | None], fixed: Sequence[float | None]) -> list[float]:
    """ours / fixed - 1, pair by pair; inf where ours diverged."""
    return [
        math.inf if a is None or b is None else a / b - 1 for a, b in zip(ours, fixed, strict=True)
    ]  # fmt: skip


def upper_limit(differences: Sequence[float], confidence: float = 0.95) -> float:
    """One-sided upper confidence limit of the mean difference: mean + t sd/sqrt(n), t of n - 1 degrees of freedom.

    Raises:
        ValueError: for fewer than two differences, which have no spread.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"differences has {n} entries: it needs at least 2 to say how far they spread; run more seeds")
    if not all(map(math.isfinite, differences)):
        return math.inf
    quantile = float(student_t.ppf(confidence, n - 1))
    return statistics.fmean(differences) + quantile * statistics.stdev(differences) / math.sqrt(n)


def time_to_target(curve: Iterable[tuple[float, float | None]], target: float) -> float | None:
    """Seconds at the first point of (seconds, metric) at or below `target`; None where none is (censored)."""
    return next((seconds for seconds, metric in curve if metric is not None and metric <= target), None)


def censored_median(times: Sequence[float | None]) -> float | None:
    """The median with the runs that never got there counted as longest; None where it is one of them."""
    found = statistics.median([math.inf if time is None else time for time in times])
    return found if math.isfinite(found) else None
