"""The largest batch that fits: adaptbs's search against Lightning's BatchSizeFinder and accelerate's decorator.

    pip install lightning accelerate
    python -m benchmarks.memory.search

On a thousand simulated devices of each kind (tests/simulated_device.py), from the same start sizes. The peers'
algorithms are run from their installed packages (peers.py). A trial is a size that is run, however many steps
each algorithm gives it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import mean, quantiles
from typing import Any

from adaptbs.memory.search import largest_fitting, search
from benchmarks.common.machine import save
from tests.simulated_device import SimulatedDevice, random_device

DEVICES = 1000
MOST = 1 << 20  # samples of the data set, which no search goes beyond
KINDS = {
    "affine": {},
    "with jumps": {"jumps": True},
    "with jumps, and another process": {"jumps": True, "taken": True},
}
Find = Callable[[SimulatedDevice, int], int | None]


@dataclass(frozen=True)
class Outcome:
    """What came of one search.

    Attributes:
        answer: the size returned, samples; None where there was none.
        possible: the largest that headroom allows, samples; 0 where none does.
        tried: the sizes that were run.
        ran_out: how many of them ran out of memory.
        fails: whether training at the answer runs out of memory.
        fits: whether it stays within headroom.
    """

    answer: int | None
    possible: int
    tried: tuple[int, ...]
    ran_out: int
    fails: bool
    fits: bool

    @property
    def shortfall(self) -> float:
        """How far below the largest possible, relative; one sample less counts as none."""
        if self.possible == 0 or (self.answer or 0) >= self.possible - 1:
            return 0.0
        return 1 - (self.answer or 0) / self.possible


def adaptbs(device: SimulatedDevice, start: int) -> int | None:
    """As `probe_memory` searches."""
    return largest_fitting(search(device.trial, start, MOST))


def outcome(find: Find, seed: int, kind: str) -> Outcome:
    """Let somebody search on one device."""
    device, start = random_device(seed, **KINDS[kind])
    tried: list[int] = []
    ran_out = 0
    step = device.step

    def watched(batch_size: int) -> int:
        nonlocal ran_out
        if not tried or tried[-1] != batch_size:
            tried.append(batch_size)
        try:
            return step(batch_size)
        except RuntimeError:
            ran_out += 1
            raise

    device.step = watched  # type: ignore[method-assign]
    answer = find(device, start)
    return Outcome(
        answer, device.largest(MOST), tuple(tried), ran_out,
        fails=answer is not None and device.runs_out(answer), fits=answer is None or device.fits(answer),
    )  # fmt: skip


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one algorithm on one kind of device."""
    possible = [o for o in outcomes if o.possible]
    short = [o.shortfall for o in possible]
    return {
        "devices": len(outcomes),
        "trials": mean(len(o.tried) for o in outcomes),
        "trials_most": max(len(o.tried) for o in outcomes),
        "ran_out": mean(o.ran_out for o in outcomes),
        "ran_out_most": max(o.ran_out for o in outcomes),
        "fails": sum(o.fails for o in outcomes),
        "never_run": sum(o.answer is not None and o.answer not in o.tried for o in outcomes),
        "over_headroom": sum(not o.fits for o in outcomes),
        "no_answer": sum(o.answer is None for o in possible),
        "shortfall_median": quantiles(short, n=100)[49],
        "shortfall_95": quantiles(short, n=100)[94],
        "short": sum(s > 0.02 for s in short),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--devices", type=int, default=DEVICES)
    args = parser.parse_args()
    try:
        from benchmarks.memory.peers import PEERS
    except ImportError as error:
        parser.error(f"the peers are run from their packages: pip install lightning accelerate ({error})")
    rows = []
    for kind in KINDS:
        for name, find in {"adaptbs": adaptbs, **PEERS}.items():
            found = summary([outcome(find, seed, kind) for seed in range(args.devices)])
            rows.append({"kind": kind, "name": name, **found})
            print(rows[-1], flush=True)
    peers = {name: version(name) for name in ("lightning", "accelerate")}
    save("memory", {"rows": rows, "peers": peers})


if __name__ == "__main__":
    main()
