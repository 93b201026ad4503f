"""fastai: find a batch size before training, then let it grow while training.

    python examples/fastai_tabular.py
"""

import argparse

import numpy as np
import pandas as pd
from fastai.tabular.all import Categorify, Normalize, TabularDataLoaders, rmse, set_seed, tabular_learner

from adaptbs.fastai import AdaptiveBatchSize


def make_table(n: int) -> pd.DataFrame:
    """A target that depends on a category and two numbers, under much noise."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"shop": rng.integers(0, 30, n).astype(str), "price": rng.random(n), "weight": rng.random(n)})
    effect = dict(zip(table["shop"].unique(), rng.normal(size=30), strict=True))
    signal = table["shop"].map(effect) + np.sin(6 * table["price"]) * table["weight"]
    return table.assign(sales=(signal + rng.normal(size=n)).astype("float32"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20_000)
    args = parser.parse_args()
    set_seed(0)
    dls = TabularDataLoaders.from_df(
        make_table(args.samples), procs=[Categorify, Normalize],
        cat_names=["shop"], cont_names=["price", "weight"], y_names="sales", bs=64,
    )  # fmt: skip
    learn = tabular_learner(dls, metrics=rmse)

    print(learn.bs_find(show_plot=False))

    callback = AdaptiveBatchSize()
    with learn.no_bar():
        learn.fit_one_cycle(3, 3e-3, cbs=callback)
    print(callback.history)
    print(callback.noise_scale)


if __name__ == "__main__":
    main()
