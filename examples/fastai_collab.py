"""fastai's collab_learner on MovieLens 100k: how many stars does a person give a film?

    python examples/fastai_collab.py --data FOLDER        FOLDER contains GroupLens's u.data
    python examples/fastai_collab.py                      random ratings
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.collab import CollabDataLoaders, Learner, collab_learner
from fastai.torch_core import set_seed

from adaptbs.fastai import AdaptiveBatchSize

EPOCHS, BATCH_SIZE, LR = 5, 64, 5e-3
COLUMNS = ["user", "item", "rating"]


def read_ratings(folder: Path) -> pd.DataFrame:
    """u.data as GroupLens ships it: tabs, no header, seconds since 1970 in a fourth column."""
    return pd.read_csv(folder / "u.data", sep="\t", names=[*COLUMNS, "timestamp"])[COLUMNS]


def make_ratings(samples: int, users: int = 900, items: int = 1200, rank: int = 4) -> pd.DataFrame:
    """1 to 5 stars: a person's tastes times a film's traits, plus noise. A few films get most of the ratings."""
    rng = np.random.default_rng(0)
    taste, trait = rng.normal(size=(users, rank)), rng.normal(size=(items, rank))
    user, item = rng.integers(users, size=samples), (items * rng.random(samples) ** 2).astype(int)
    stars = 3.5 + 0.45 * (taste[user] * trait[item]).sum(1) + 0.7 * rng.normal(size=samples)
    return pd.DataFrame({"user": user, "item": item, "rating": stars.round().clip(1, 5)})


def make_learner(ratings: pd.DataFrame, bs: int = BATCH_SIZE) -> Learner:
    set_seed(0)
    dls = CollabDataLoaders.from_df(ratings, bs=bs, seed=0)
    return collab_learner(dls, n_factors=50, y_range=(0.5, 5.5))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of u.data; ratings are made up where none is given")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--picture", type=Path, default=Path("fastai_collab.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # pandas' own, never written to
    if args.data is None:
        print("no --data FOLDER with MovieLens's u.data: these ratings are made up")
        ratings = make_ratings(args.samples)
    else:
        ratings = read_ratings(args.data)
        ratings = ratings.sample(min(args.samples, len(ratings)), random_state=0, ignore_index=True)
    learn = make_learner(ratings)
    callback = AdaptiveBatchSize()
    with learn.no_bar():
        learn.fit_one_cycle(EPOCHS, LR, wd=0.1, cbs=callback)
    print(callback.history)
    print(callback.noise_scale)
    callback.plot().savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
