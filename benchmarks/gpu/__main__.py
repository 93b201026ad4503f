"""All that only a GPU can show, in one command.

    python -m benchmarks.gpu [--only PART ...] [--again PART ...] [--out FILE]
    python -m benchmarks.gpu --device cpu --quick --out FILE     to try the program itself; it measures nothing then

Parts take at most eight minutes each and come in the order of what they are worth. Results are written after each cell
of a part, to benchmarks/results/gpu.json or to FILE. The same command, given again, goes on where it ended: with cells
that there was no time for, and with those that failed. A part runs in a process of its own, so that none can stop the
others. `--minutes` ends the whole command in time, where a machine is lent for a while. Needs torch, numpy and pytest,
no network, and adaptbs as it is in this checkout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine import RESULTS
from benchmarks.gpu import stand_in
from benchmarks.gpu.cells import LIMIT, Book, Cell, LeftOut, Part, Setup, failed, run_part

stand_in.for_scipy()

from benchmarks.gpu import identity, memory, near_limit, quality, step_time  # noqa: E402  needs the stand-in

ROOT = Path(__file__).parents[2]
SPARE = 120  # seconds by which a cell may exceed a part's limit
LEAST = 60  # seconds that have to be left for a part to begin, whose first cell is always run


def tests(setup: Setup) -> Iterator[Cell]:
    """pytest -m cuda."""
    yield Cell("pytest -m cuda", pytest_cuda)


def pytest_cuda() -> dict[str, Any]:
    done = program("-m", "pytest", "-q", "-m", "cuda", "tests/gpu", "-p", "no:cacheprovider")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = done.stdout.splitlines()
    return {"summary": lines[-1], "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def demo(setup: Setup) -> Iterator[Cell]:
    """The demo's two runs: the article's case."""
    yield Cell("flights", partial(demo_runs, setup.quick))


def demo_runs(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = program("-m", "adaptbs", "demo", "--out", folder, *(["--quick"] if quick else []))
        if "the demo needs" in done.stderr or "The demo needs" in done.stderr:
            raise LeftOut(done.stderr.strip())
        if done.returncode:
            raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "demo.json").read_text())
    return found


def program(*arguments: str, timeout: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's root."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


PARTS: dict[str, Part] = {
    "tests": tests,
    "quality_host_bound": quality.time_to_quality("host-bound MLP"),
    "quality_resnet50": quality.time_to_quality("ResNet-50"),
    "quality_gpt2": quality.time_to_quality("GPT-2 small"),
    "overhead": step_time.overhead,
    "near_limit": near_limit.near_limit,
    "probe": memory.probe,
    "wordings": near_limit.wordings,
    "bit_identity": identity.bit_identity,
    "measuring": step_time.measuring,
    "step_time": step_time.step_time,
    "modes": quality.modes,
    "out_of_memory": memory.out_of_memory,
    "larger_than_memory": memory.larger_than_memory,
    "loader_bound": step_time.loader_bound,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and few steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--again", nargs="+", choices=PARTS, default=[], metavar="PART", help="forget their results")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell that would end later")
    parser.add_argument("--out", type=Path, help="file to write; results/gpu.json if left out")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --device cpu --quick --out FILE tries the program without one")
    if args.device == "cpu" and args.out is None:
        parser.error("--device cpu measures nothing that is a result: name a file with --out")
    out = (args.out or RESULTS / "gpu.json").absolute()
    device = torch.device("cuda", torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    if args.quick and device.type == "cpu":
        torch.set_num_threads(1)  # tensors this small only wait for a second thread
    setup = Setup(device, args.quick)
    book = Book(out, setup)
    for name in args.again:
        book.forget(name)
    book.write()
    end = time.monotonic() + 60 * args.minutes
    for name in args.only:
        left = min(end - time.monotonic(), LIMIT)
        if left < LEAST:
            break
        if args.here:
            run_part(name, PARTS[name], setup, book, left)
        elif not book.part(name)["complete"]:
            in_a_process_of_its_own(name, args, out, left)
            book = Book(out, setup)
    return report(book, args.only)


def in_a_process_of_its_own(name: str, args: argparse.Namespace, out: Path, left: float) -> None:
    """Run a part, in so many seconds."""
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--here", "--only", name, "--device", args.device, "--out", str(out),
        "--minutes", str(left / 60),
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        subprocess.run(
            [*command, *(["--quick"] if args.quick else [])], cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
            timeout=left + min(SPARE, left), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{name} | stopped after {left + min(SPARE, left):.0f} s", flush=True)


def report(book: Book, names: list[str]) -> int:
    """Say what is left to do; 1 if something has failed."""
    wrong = False
    for name in names:
        part = book.part(name)
        bad = [cell for cell, came in part["cells"].items() if failed(came)]
        for rule, row in quality.compared(part["cells"]).items() if name.startswith("quality") else ():
            print(f"{name} | {rule} | {row}")
        if not part["complete"]:
            print(f"{name} is not complete: give the same command again")
        if bad:
            print(f"{name}: failed: {', '.join(bad)}")
        wrong |= bool(bad) or not part["complete"]
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
