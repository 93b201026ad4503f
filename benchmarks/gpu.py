"""All that only a CUDA device can show, in one command and under eight minutes.

    python benchmarks/gpu.py [--quick] [--only PART ...] [--out FILE]

runs the parts below one after another and writes what each has found to results/gpu.json (with --quick or --only: to
FILE only), after each row, so that a run cut off keeps what it has. A part that fails is recorded with its error and
stops no other; the exit status is 1 then. `--device cpu` tries the program itself where there is no card: memory is
simulated there (the rows say so), and nothing is written unless --out says where.

    tests               pytest -m cuda tests/gpu
    probe               probe_memory against bisection by real steps, fp32 and bf16
    out_of_memory       a batch that does not fit, by loader.step, against the same with enough memory
    larger_than_memory  runs that are asked to grow far past what fits
    overhead            time of a run with adaptbs in place, over a plain one; loader.step over the three lines
    step_time           t(B) over powers of 2, and adaptbs' fit of it
    demo                the two runs of `python -m adaptbs demo`, where fastai and the flights are installed
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's adaptbs and tests, installed or not
import gpu_memory
import gpu_probe
import gpu_programs
import gpu_time
from gpu_parts import run_part
from machine import save

Part = Callable[[torch.device, bool], Iterator[dict[str, Any]]]

#: what it runs, and seconds after which it begins nothing more
PARTS: dict[str, tuple[Part, float]] = {
    "tests": (gpu_programs.tests, 75),
    "probe": (gpu_probe.part, 120),
    "out_of_memory": (gpu_memory.out_of_memory, 25),
    "larger_than_memory": (gpu_memory.larger_than_memory, 50),
    "overhead": (gpu_time.overhead, 75),
    "step_time": (gpu_time.step_time, 45),
    "demo": (gpu_programs.demo, 60),
}
IN_ALL = 450.0  # seconds


def device_of(name: str) -> dict[str, Any]:
    """What a reader must know of the device, beside machine.py's."""
    if name != "cuda":
        return {"device": name, "simulated_memory": True}
    free, total = torch.cuda.mem_get_info()
    return {
        "device": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability(),
        "memory_total": total, "memory_free": free, "cuda_runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, to try it")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="file for the results")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: --device cpu tries the program itself, on simulated memory")
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    whole = args.device == "cuda" and not args.quick and not args.only
    result: dict[str, Any] = {**device_of(args.device), "quick": args.quick, "parts": {}}

    def keep(name: str, record: dict[str, Any]) -> None:
        result["parts"][name] = record
        if whole or args.out:
            save("gpu", result, args.out)

    begin = time.perf_counter()
    for name in args.only or PARTS:
        part, budget = PARTS[name]
        left = IN_ALL - (time.perf_counter() - begin)
        record = run_part(
            lambda part=part: part(device, args.quick), min(budget, left), device, lambda r, name=name: keep(name, r)
        )
        keep(name, record)
        said = record.get("error") or record.get("left_out") or "done"
        print(f"{name:20s}{record['seconds']:7.1f} s {len(record['rows']):3d} rows   {said}", flush=True)
    failed = [name for name, record in result["parts"].items() if "error" in record]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
