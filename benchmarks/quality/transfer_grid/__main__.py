"""Run the grid: which rule loses least as the batch grows?

    python -m benchmarks.quality.transfer_grid [--only TASK ...] [--optimizers OPTIMIZER ...] [--quick]

For each of six tasks and four optimizers, the learning rate and weight decay that are best at the base batch are found
on seeds of their own. Then other seeds train at the base batch up to .29 of a one-cycle run, where the rate is just
past its peak. From there each rule takes them to the end at 2, 4, 8, 16 and 32 times the batch, over the same number of
samples and on batches that no other part has seen.

A line a task, optimizer and pair of seeds goes to results/transfer_grid.jsonl. Stopped anywhere, it goes on from there.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from itertools import product

import torch

from benchmarks.quality.transfer_grid import runs
from benchmarks.quality.transfer_grid.results import GROWTHS, SEEDS, Results, excess
from benchmarks.quality.transfer_grid.rules import KINDS, NONE, Kind, Rule
from benchmarks.quality.transfer_grid.runs import Setting
from benchmarks.quality.transfer_grid.tasks import TASKS, Task

CHOOSING = ("choosing 0", "choosing 1")  # seeds that the setting is chosen on, and nothing else
AT_ONCE = 32  # rules


def best(task: Task, kind: Kind) -> Setting:
    """The learning rate and weight decay of least mean loss at the base batch."""
    settings = [Setting(*pair) for pair in product(kind.rates, kind.decays)]
    n = len(CHOOSING)
    (ends,) = runs.trained(task, kind, CHOOSING * len(settings), [setting for setting in settings for _ in CHOOSING])
    losses = runs.held_out_losses(task, ends.weights)
    means = [statistics.fmean(losses[i : i + n]) for i in range(0, len(losses), n)]
    return min(zip(means, settings, strict=True), key=lambda pair: (not math.isfinite(pair[0]), pair))[1]


def compare(
    task: Task, kind: Kind, rules: Sequence[Rule], setting: Setting, seeds: Sequence[int], growths: Sequence[int]
) -> tuple[dict[str, object], list[list[list[int]]]]:
    """What was found at the base batch, and the `excess` of each rule and seed for each k."""
    *looked, ends = runs.trained(task, kind, seeds, [setting] * len(seeds), (*runs.LOOKS, runs.STEPS))
    draw = runs.generator("phi", task.name, kind.name, seeds)
    phi = [runs.b_simple(task, state.weights, draw) for state in looked]
    base = runs.held_out_losses(task, ends.weights)
    found = []
    for k in growths:
        losses: list[list[float]] = []
        for i in range(0, len(rules), AT_ONCE):
            some = rules[i : i + AT_ONCE]
            losses += runs.branched(task, kind, some, k, trunk=looked[0], setting=setting, seeds=seeds, phi=phi)
        found.append([excess(by_seed, base) for by_seed in losses])
    about = {"phi": [float(f"{value:.3g}") for value in phi], "loss": [float(f"{x:.5g}") for x in base]}
    return {**setting._asdict(), **about}, found


def quick() -> None:
    """One task, two rules and two seeds, shown and not kept."""
    kind = KINDS[1]
    about, (found,) = compare(TASKS[0], kind, [NONE, kind.default], Setting(0.016, 0.1), (0, 1), (32,))
    print(about, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one task, two rules, two seeds; nothing is kept")
    parser.add_argument("--only", nargs="+", choices=[task.name for task in TASKS], help="some of the tasks")
    parser.add_argument("--optimizers", nargs="+", choices=[kind.name for kind in KINDS], help="some of the optimizers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        quick()
        return
    tasks = [task for task in TASKS if args.only is None or task.name in args.only]
    kinds = [kind for kind in KINDS if args.optimizers is None or kind.name in args.optimizers]
    for seeds, task, kind in product(SEEDS, tasks, kinds):
        results = Results()  # read anew, for other processes may write to it
        if results.row(task.name, kind.name, seeds):
            continue
        before = results.row(task.name, kind.name, SEEDS[0])
        setting = Setting(before["lr"], before["weight_decay"]) if before else best(task, kind)
        about, found = compare(task, kind, kind.rules, setting, seeds, GROWTHS)
        results.add(task.name, kind.name, seeds, about, found)
        print(f"{task.name}, {kind.name}, seeds {seeds}: {about}", flush=True)


if __name__ == "__main__":
    main()
