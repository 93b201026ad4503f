"""Estimators of the noise scale, the article's and AdaptDL's and ours, against the exact truth while weights move.

    python -m benchmarks.noise_scale.estimators --mnist DIR        all of it (about an hour)
    python -m benchmarks.noise_scale.estimators --mnist DIR --part windows --case CNN --seconds 300
    python -m benchmarks.noise_scale.estimators --part picture     draws the committed result's figure again

From a moment of training (`cases.py`) many windows of 40 steps run on, each with a data order of its own; in each,
every estimator sees the same steps. Pooled over the windows, estimate / truth should be 1. Truth moves along a
window and differs between windows, so it is averaged too: at four steps of each window, one of every quarter, placed
symmetrically within each half, so that a steady drift cancels, and in turn over the windows.
Windows are added, 30 at a time, until the estimate by halves has a standard error of 5 % of the true |G|^2, or
`--seconds` have passed. Results go to results/estimators.json, case by case, beside those already there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from adaptbs.gradients.halves import GradientPool, HalfBatches
from adaptbs.gradients.mean_gradient import MeanGradient
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.model.batches import slice_batch
from adaptbs.model.preserve import preserved
from adaptbs.noise_scale.b_simple import to_floats
from adaptbs.types import SquaredNorms
from benchmarks.common import machine
from benchmarks.common.per_example import PerExample
from benchmarks.noise_scale import cost, epoch
from benchmarks.noise_scale.cases import (
    BATCH,
    CASES,
    PARTS,
    STEPS,
    Case,
    Run,
    Task,
    batches,
    flights_task,
    mnist_tasks,
    trained,
)
from benchmarks.noise_scale.rivals import Consecutive, LastBatch, MovingAverages, PreviousGradient, Stored, TwoRuns
from benchmarks.noise_scale.truth import short, truth, truth_sizes, unseen
from benchmarks.noise_scale.variance_law import second_moments, variance_law

BLOCK, TARGET = 30, 0.05  # windows at a time, and the standard error of |G|^2 at which a case is done
SELDOM = 3  # the costlier estimators run in every 3rd window
SEED = 2018
#: The batch whose gradient an estimator measures; with BatchNorm the expected gradient depends on it.
SIZE = {"halves": BATCH // 2, "micro-batches": BATCH // PARTS}
#: (parts k, their size b) for which the variance law is known.
SPLIT = {"halves": (2, BATCH // 2), "micro-batches": (PARTS, BATCH // PARTS), "per example": (BATCH, 1)}

PARTS_OF_IT = ("windows", "cost", "unseen", "epoch", "picture")
Found = dict[str, list[SquaredNorms]]


class MicroBatches:
    """What accumulating gradients over equal parts of a batch gives."""

    def __init__(self, run: Run) -> None:
        self.model, self.gradient = run.model, MeanGradient(BatchLoss(run.task.loss_func))

    def measure(self, batch: list[torch.Tensor]) -> SquaredNorms:
        size = BATCH // PARTS
        pool = GradientPool(size)
        with preserved(self.model):
            for start in range(0, BATCH, size):
                pool.add(self.gradient(self.model, slice_batch(batch, start, start + size)))
        return pool.norms()


def window(start: Run, number: int, seldom: bool) -> tuple[Found, list[torch.Tensor]]:
    """What every estimator found in one window; and, if `seldom`, the same batches' gradients at unmoved weights."""
    run = start.copy()
    order = torch.Generator().manual_seed(SEED + 1 + number)
    source = list(itertools.islice(batches(run.task, BATCH, order), 2 * STEPS))
    half, at = STEPS // 2, place(number)
    truth_at = {at, half - 1 - at, half + at, STEPS - 1 - at}
    loss = BatchLoss(run.task.loss_func)
    ours: dict = {"halves": HalfBatches(run.model, loss)}
    if not run.couples_samples:
        ours["per example"] = PerExample(run.model, loss)
    if seldom:
        ours["micro-batches"] = MicroBatches(run)
    rivals = {
        "A": MovingAverages(BATCH), "B": Stored(BATCH), "D1": LastBatch(BATCH),
        "D2": Consecutive(BATCH), "AdaptDL": PreviousGradient(BATCH),
    }  # fmt: skip
    found: Found = defaultdict(list)
    two_runs, control, frozen = TwoRuns(BATCH), Consecutive(BATCH), []
    other, at_rest = start.copy(), start.copy()
    for step, batch in enumerate(source[:STEPS]):
        if step in truth_at:
            for size in truth_sizes(run, every=seldom):
                found[f"truth {size}"].append(truth(run, size, run.task.truth_samples, order))
        for name, estimator in ours.items():
            found[name].append(estimator.measure(batch))
        gradient = run.step(batch)
        for name, rival in rivals.items():
            _keep(found[name], rival.add(gradient))
        if seldom:
            double = [torch.cat(pair) for pair in zip(source[2 * step], source[2 * step + 1], strict=True)]
            _keep(found["C"], two_runs.add(gradient, other.step(double)))
            frozen.append(at_rest.gradient(batch))
            _keep(found["frozen D2"], control.add(frozen[-1]))
    return {name: to_floats(norms) for name, norms in found.items()}, frozen


def place(number: int) -> int:
    """Where in a quarter a window takes its truth: a block of windows has each place equally often."""
    return number % (STEPS // 4)


def _keep(found: list[SquaredNorms], norms: SquaredNorms | None) -> None:
    if norms is not None:
        found.append(norms)


def summary(case: Case, found: list[Found], shape: tuple[float, float], at_rest: SquaredNorms, seconds: float) -> dict:
    """Pooled estimates over pooled truth, and how single windows spread."""

    def column(name: str, beside: str) -> np.ndarray:
        """(|G|^2, tr(Sigma)) of each window that has both."""
        windows = [f[name] for f in found if name in f and beside in f]
        return np.array([[np.mean([n.grad_sq for n in w]), np.mean([n.trace for n in w])] for w in windows])

    def error(residuals: np.ndarray, name: str, beside: str) -> np.ndarray:
        """Standard error of the mean; where windows are many enough, what comes from truth's place is taken out."""
        at = np.array([place(i) for i, f in enumerate(found, 1) if name in f and beside in f])
        places, n = np.unique(at), len(at)
        if n < 2 * len(places):
            return residuals.std(0, ddof=1) / math.sqrt(n)
        inside = np.concatenate([residuals[at == p] - residuals[at == p].mean(0) for p in places])
        return np.sqrt((inside**2).sum(0) / (n - len(places)) / n)

    names = list(dict.fromkeys(name for f in found for name in f))
    sizes = [int(name.split()[1]) for name in names if name.startswith("truth")]
    true, result = {}, {}
    for size in sizes:
        rows = column(f"truth {size}", f"truth {size}")
        mean, se = rows.mean(0), error(rows, f"truth {size}", f"truth {size}")
        true[size] = {
            "noise_scale": mean[1] / mean[0], "grad_sq": mean[0], "grad_sq_se": se[0] / mean[0],
            "trace": mean[1], "trace_se": se[1] / mean[1],
        }  # fmt: skip
    r, alignment = shape
    for name in (name for name in names if not name.startswith("truth")):
        size = 1 if 1 in true else SIZE.get(name, BATCH)
        of_size = f"truth {size}"
        rows, values = column(name, of_size), column(of_size, name)
        if name == "frozen D2":
            values = np.full_like(rows, [at_rest.grad_sq, at_rest.trace])
        n, mean, single = len(rows), values.mean(0), column(name, name)
        ratio = rows.mean(0) / mean
        se = error(rows - ratio * values, name, of_size) / mean  # of a ratio of sums over windows
        entry = {
            "windows": n, "grad_sq": ratio[0], "grad_sq_se": se[0], "trace": ratio[1], "trace_se": se[1],
            "spread": single[:, 0].std(ddof=1) / mean[0], "negative": (single[:, 0] < 0).mean(),
            "singles": len(single),
        }  # fmt: skip
        if name in SPLIT:
            here = true[size]
            square, along = here["trace"] ** 2 / r, alignment * here["grad_sq"] * here["trace"]
            law = math.sqrt(variance_law(*SPLIT[name], STEPS, square, along)) / here["grad_sq"]
            entry |= {"law": law, "negative_by_law": math.erfc(1 / law / math.sqrt(2)) / 2}
        result[name] = short(entry)
    return {
        "name": case.name, "task": case.task, "optimizer": case.optimizer, "lr": case.lr, "step": case.step,
        "truth": {str(size): short(values) for size, values in true.items()},
        **short({"r": r, "alignment": alignment, "seconds": seconds}), "windows": len(found), "estimators": result,
    }  # fmt: skip


def run_case(case: Case, task: Task, seconds: float) -> dict:
    start = trained(case, task, SEED)
    at_rest = truth(start, truth_sizes(start, every=True)[-1], None, torch.Generator().manual_seed(SEED))
    found, moments = [], []
    begin = time.perf_counter()
    for number in itertools.count(1):
        in_window, frozen = window(start, number, seldom=number % SELDOM == 0)
        found.append(in_window)
        if frozen:
            moments.append(second_moments(frozen, BATCH))
        spent = time.perf_counter() - begin
        if number % BLOCK == 0:
            trace, square, along = np.mean(moments, 0)
            shape = trace**2 / square, along / (at_rest.grad_sq * trace)  # r, and how far noise lies along G
            result = summary(case, found, shape, at_rest, spent)
            if spent > seconds or result["estimators"]["halves"]["grad_sq_se"] <= TARGET:
                return result
    raise AssertionError("itertools.count ended")


def update(**parts) -> Path:
    """Save parts of the result beside those already there."""
    path = machine.RESULTS / "estimators.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    settings = {"batch_size": BATCH, "steps": STEPS, "seed": SEED, "target": TARGET}
    return machine.save("estimators", {**old, **settings, **parts})


def update_case(result: dict) -> None:
    path = machine.RESULTS / "estimators.json"
    old = json.loads(path.read_text()).get("cases", []) if path.exists() else []
    cases = {row["name"]: row for row in [*old, result]}
    update(cases=[cases[case.name] for case in CASES if case.name in cases])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--part", choices=PARTS_OF_IT, help="all if left out")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=100, help="at most so long a case")
    args = parser.parse_args()
    torch.set_num_threads(1)  # windows are many and small
    if args.part == "picture":
        print(epoch.draw())
        return
    tasks = {**mnist_tasks(args.mnist), "flights": flights_task()}
    for case in CASES if args.part in (None, "windows") else ():
        if args.case in case.name:
            result = run_case(case, tasks[case.task], args.seconds)
            update_case(result)
            halves = result["estimators"]["halves"]
            print(f"{case.name}: {result['windows']} windows, {result['seconds']} s, by halves {halves}", flush=True)
    if args.part in (None, "cost"):
        print(update(cost=cost.compare(tasks)))
    if args.part in (None, "unseen"):
        print(update(unseen=unseen(tasks["MLP"], SEED)))
    if args.part in (None, "epoch"):
        print(update(epoch=epoch.run(tasks["MLP"])))
        print(epoch.draw())


if __name__ == "__main__":
    main()
