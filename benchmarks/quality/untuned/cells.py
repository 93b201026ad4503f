"""What tables of the untuned tasks are made of: the rows of parts, and cells of pairs."""

from __future__ import annotations

from benchmarks.common.markdown import where
from benchmarks.quality.results import Key, Part, Row
from benchmarks.quality.untuned.compared import FOLDER, Pairs

COMMAND = "python -m benchmarks.quality.untuned --data DIR"


def rows_of(*parts: str) -> dict[Key, Row]:
    """The rows of these parts, of the last that has one."""
    return {key: row for part in parts for key, row in Part(part, FOLDER).rows.items()}


def made_by(part: str) -> str:
    """Which command has made a part, when, and on which machine; nothing if it has not been run."""
    header = Part(part, FOLDER).header
    return where(header, f"{COMMAND} --only {part}") if header else ""


def error(found: Pairs) -> str:
    """The mean difference and its upper limit."""
    return f"{found.difference:+.2%} ({found.limit:+.2%})"


def times_faster(ratio: float) -> str:
    """How many times faster."""
    return f"{ratio:.1f} x" if ratio >= 1.1 else f"{ratio:.2f} x"
