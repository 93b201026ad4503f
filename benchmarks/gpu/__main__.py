"""All that only a GPU can show, in one command: tests, memory, time, and the demo. Under eight minutes.

    python -m benchmarks.gpu [--only PART ...] [--out FILE]
    python -m benchmarks.gpu --device cpu --quick --out FILE     to try the program itself; it measures nothing then

Writes results/gpu.json after each part, so that a run that is cut off keeps what it has. A part that fails is recorded
with its error, and does not stop the others. Needs torch and pytest, and takes adaptbs from the checkout that it is
started in; the demo also needs fastai and its data, else it is left out, which is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine import RESULTS, machine
from benchmarks.gpu import memory, step_time

ROOT = Path(__file__).parents[2]
LONGEST = 150  # seconds that a program of its own may take


class LeftOut(Exception):
    """Why a part was not run."""


def tests(device: torch.device, quick: bool) -> dict[str, Any]:
    """pytest -m cuda."""
    done = program("-m", "pytest", "-q", "-m", "cuda", "tests/gpu", "-p", "no:cacheprovider")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = done.stdout.splitlines()
    return {"summary": lines[-1], "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def demo(device: torch.device, quick: bool) -> dict[str, Any]:
    """The demo's two runs."""
    with tempfile.TemporaryDirectory() as folder:
        done = program("-m", "adaptbs", "demo", "--out", folder, *(["--quick"] if quick else []))
        if "the demo needs" in done.stderr or "The demo needs" in done.stderr:
            raise LeftOut(done.stderr.strip())
        if done.returncode:
            raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "demo.json").read_text())
    return found


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's root."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=LONGEST,
    )  # fmt: skip


Work = Callable[[torch.device, bool], Any]
PARTS: dict[str, Work] = {
    "tests": tests,
    "probe": memory.probe,
    "out_of_memory": memory.out_of_memory,
    "larger_than_memory": memory.larger_than_memory,
    "overhead": step_time.overhead,
    "step_time": step_time.step_time,
    "demo": demo,
}


def attempt(work: Work, device: torch.device, quick: bool) -> dict[str, Any]:
    """What came of a part, and how long it took."""
    begin = time.perf_counter()
    try:
        came: dict[str, Any] = {"result": work(device, quick)}
    except LeftOut as reason:
        came = {"left_out": str(reason)}
    except Exception as error:  # (recorded; the other parts are to be run all the same)
        came = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**came, "seconds": time.perf_counter() - begin}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and few steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="file to write; results/gpu.json if left out")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --device cpu --quick --out FILE tries the program without one")
    if args.device == "cpu" and args.out is None:
        parser.error("--device cpu measures nothing that is a result: name a file with --out")
    out, device, found = args.out or RESULTS / "gpu.json", torch.device(args.device), {}
    for name in args.only:
        found[name] = attempt(PARTS[name], device, args.quick)
        print(name, json.dumps(found[name])[:400], flush=True)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        said = {"device": args.device, "quick": args.quick, "memory": "real" if args.device == "cuda" else "simulated"}
        out.write_text(json.dumps({**said, "parts": found, "machine": machine(), "date": now}, indent=2) + "\n")
    return int(any(map(failed, found.values())))


def failed(came: dict[str, Any]) -> bool:
    """Whether a part did, or one of its tests."""
    result = came.get("result")
    return "error" in came or (isinstance(result, dict) and bool(result.get("failed")))


if __name__ == "__main__":
    sys.exit(main())
