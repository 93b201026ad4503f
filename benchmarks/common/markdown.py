"""Committed results as Markdown tables."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common.machine import RESULTS


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def where(result: dict[str, Any], command: str) -> str:
    machine = result["machine"]
    cores = machine.get("cores") or machine.get("cpu_cores")
    device = machine.get("cuda") or f"{cores} CPU cores, no GPU"
    return f"\n`{command}` on {result['date'][:10]}: {device}, torch {machine['torch'].split('+')[0]}.\n"
