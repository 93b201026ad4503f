"""Calls into the package that a step of training makes, counted rather than timed.

    python -m benchmarks.cost.calls [--profile]

A plain loop trains a small network by Adam, from batch to batch. Every Python function of adaptbs that is entered on
the way from one batch to the next counts, generators each time that they go on. Steps on which a batch is measured, or
measurements are read and nothing is decided, are left out: `benchmarks.cost.measuring` has the cost of measuring. Of
the rest, those with a decision are one kind, and all others, the plain ones, are the other. Four loops: with and
without a scheduler to drive, and with the clock read or a step time given. The clock is a made-up one: a millisecond
passes whenever it is looked at, so a run makes the same steps on any machine. Medians, and the most that any step of
the kind made, go to results/calls.json. A step that decides reads all that has been measured and timed since the
decision before, so it is the median that a limit can be set on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import adaptbs
from adaptbs import AdaptiveDataLoader
from benchmarks.common.machine import save

PACKAGE = str(Path(adaptbs.__file__).parent)
SAMPLES, BATCH_SIZE, EPOCHS = 20_000, 64, 4
LOOPS = {
    "plain loop": {"scheduled": False, "timed": True},
    "plain loop, step time given": {"scheduled": False, "timed": False},
    "with a scheduler": {"scheduled": True, "timed": True},
    "with a scheduler, step time given": {"scheduled": True, "timed": False},
}


@dataclass
class Step:
    """Calls from one batch to the next.

    Attributes:
        batch_size: of the batch, samples.
        calls: how often each function was entered, by its file and name.
        depth: the most functions of the package that stood on the stack at once.
        events: of the records that the history has gained.
    """

    batch_size: int
    calls: Counter[str] = field(default_factory=Counter)
    depth: int = 0
    events: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    @property
    def kind(self) -> str | None:
        """None where a measurement was made, or measurements were read without a decision."""
        measured = "/gradients/in_step.py _guarded" in self.calls
        if "decision" in self.events:
            return None if measured else "deciding"
        touched = any(name.startswith(("/gradients/", "/noise_scale/")) for name in self.calls)
        return None if touched else "plain"


class Counting:
    """Counts calls into the package for the current step, between `start` and `stop`."""

    def __init__(self) -> None:
        self.step, self._depth = Step(0), 0

    def start(self, step: Step) -> None:
        """Begin; no function of the package may be under way."""
        self.step, self._depth = step, 0
        sys.setprofile(self._profile)

    def stop(self) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            self.step.calls[f"{code.co_filename[len(PACKAGE) :]} {code.co_name}"] += 1
        self._depth += 1 if event == "call" else -1
        self.step.depth = max(self.step.depth, self._depth)


@mock.patch("time.perf_counter", count(step=2**-10).__next__)
def steps(*, scheduled: bool, timed: bool, seed: int = 0) -> list[Step]:
    """The steps of a run."""
    made = []
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = torch.randn(SAMPLES, 20), (torch.randn(SAMPLES) > 0).long()
    length: dict[str, Any] = {"epochs": EPOCHS}
    if scheduled:
        total = EPOCHS * -(-SAMPLES // BATCH_SIZE)
        length = {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=total)}
    loader = AdaptiveDataLoader(
        TensorDataset(x, y), BATCH_SIZE, shuffle=True, model=model, optimizer=optimizer, loss_func=F.cross_entropy,
        step_time=None if timed else (1e-3, 1e-5), **length,
    )  # fmt: skip
    counting, known = Counting(), 0
    for _ in loader.epochs(EPOCHS):
        step: Step | None = None
        for xb, yb in loader:
            counting.stop()
            if step is not None:
                step.events = [record["event"] for record in loader.history.records[known:]]
                made.append(step)
            known, step = len(loader.history), Step(len(xb))
            counting.start(step)
            F.cross_entropy(model(xb), yb).backward()
            optimizer.step()
            optimizer.zero_grad()
            if scheduled:
                length["scheduler"].step()
        counting.stop()  # what ends an epoch and begins the next is no step's
    return made


def summary(made: list[Step]) -> dict[str, Any]:
    """Median and most of each kind; of plain steps for those at the first batch size, and for those of a grown one."""
    plain = [step for step in made if step.kind == "plain"]
    deciding = [step for step in made if step.kind == "deciding"]
    grown = [step for step in plain if step.batch_size > BATCH_SIZE]
    first = [step for step in plain if step.batch_size == BATCH_SIZE]
    kinds = {"plain, first batch size": first, "plain, grown": grown, "deciding": deciding}
    return {
        name: {
            "steps": len(steps), "median": statistics.median(step.total for step in steps),
            "most": max(step.total for step in steps), "depth": max(step.depth for step in steps),
        }
        for name, steps in kinds.items() if steps
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="list the calls of a typical grown plain step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name, options in LOOPS.items():
        made = steps(**options)
        result[name] = summary(made)
        for kind, counts in result[name].items():
            print(f"{name:36}{kind:26}" + "  ".join(f"{key} {value:g}" for key, value in counts.items()))
        if args.profile:
            grown = [step for step in made if step.kind == "plain" and step.batch_size > BATCH_SIZE]
            typical = sorted(grown, key=lambda step: step.total)[len(grown) // 2]
            print(*(f"    {count} {call}" for call, count in sorted(typical.calls.items())), sep="\n")
    print(save("calls", {"loops": result}))


if __name__ == "__main__":
    main()
