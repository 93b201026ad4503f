"""Small Learners on synthetic data, and what the tests ask of a run."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, OptimWrapper, set_seed
from fastai.tabular.all import Categorify, Normalize, RegressionBlock, TabularPandas, tabular_learner
from torch import Tensor, nn

TORCH_ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW)


class Rows:
    """Item i is (x_i, y_i, i), so that a batch says which samples it holds; y is linear in x but for its noise."""

    def __init__(self, n: int, noise: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 6))
        self.x = torch.tensor(x, dtype=torch.float32)
        self.y = torch.tensor(x.sum(1, keepdims=True) + noise * rng.normal(size=(n, 1)), dtype=torch.float32)
        self.index = torch.arange(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i], self.y[i], self.index[i]


class Augmented(Rows):
    """Each item drawn differs by chance: by Python's, NumPy's and torch's generators, which fastai seeds in workers."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y, index = super().__getitem__(i)
        return x + 0.1 * (torch.randn(6) + random.random() + float(np.random.rand())), y, index


def loss_func(pred: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
    return nn.functional.mse_loss(pred, y)


def plain_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def touchy_model() -> nn.Module:
    """Notices any other batch (BatchNorm) and any other random draw (dropout)."""
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def body_and_head(model: Any) -> list[list[nn.Parameter]]:
    """Two parameter groups, for `fine_tune`."""
    return [[p for layer in model[:-1] for p in layer.parameters()], list(model[-1].parameters())]


def make_learner(
    bs: int = 20,
    n: int = 203,
    noise: float = 1.0,
    model: Any = plain_model,
    train: Any = None,
    rows: Any = Rows,
    num_workers: int = 0,
    drop_last: bool = False,
    progress: bool = False,
    **learner: Any,
) -> Learner:
    """A seeded Learner; `train` makes another training loader (after seeding: fastai's draw a seed when made)."""
    set_seed(7)
    if train is None:
        options = {"bs": bs, "shuffle": True, "num_workers": num_workers, "drop_last": drop_last}
        train = partial(DataLoader, rows(n, noise), **options)
    dls = DataLoaders(train(), DataLoader(Rows(150, noise, seed=1), bs=100))
    dls.n_inp = 1
    made = Learner(dls, model(), **{"loss_func": loss_func, "lr": 1e-2, **learner})
    if not progress:
        made.remove_cb(made.progress)
    return made


def make_tabular_learner(n: int = 303, bs: int = 25, **learner: Any) -> Learner:
    """fastai's own tabular Learner, whose default loader (TabWeightedDL) samples with replacement, through NumPy."""
    set_seed(7)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"c": rng.choice(list("abcd"), n), "x": rng.normal(size=n)})
    table["y"] = table.x + (table.c == "a") + 0.1 * rng.normal(size=n)
    splits = (list(range(n - 50)), list(range(n - 50, n)))
    data = TabularPandas(
        table, [Categorify, Normalize], cat_names=["c"], cont_names=["x"], y_names="y",
        y_block=RegressionBlock(), splits=splits,
    )  # fmt: skip
    config = {"ps": 0.2, "embed_p": 0.1}
    made = tabular_learner(data.dataloaders(bs=bs), layers=[16], n_out=1, config=config, **learner)
    made.remove_cb(made.progress)
    return made


class Watch(Callback):
    """Takes down what the model gets to see of a fit.

    Attributes:
        sizes, indices: of the batches, epoch by epoch.
        steps: of each batch: epoch, samples seen in it before, and the hyperparameters before adaptbs scales them.
        totals: (batches delivered, `n_iter`) at the end of each epoch.
    """

    order, run_valid = 60.5, False  # after the schedule, before AdaptiveBatchSize

    def before_fit(self) -> None:
        self.sizes, self.indices, self.steps, self.totals = [], [], [], []

    def before_train(self) -> None:
        self.sizes.append([])
        self.indices.append([])

    def before_batch(self) -> None:
        self.steps.append((self.epoch, sum(self.sizes[-1]), [dict(h) for h in self.opt.hypers]))
        self.sizes[-1].append(len(self.xb[0]))
        self.indices[-1] += self.yb[-1].flatten().tolist()

    def after_train(self) -> None:
        self.totals.append((len(self.sizes[-1]), self.n_iter))


def doubling(noise_scale: Any, batch_size: int, progress: float) -> int:
    """A target that grows whatever the noise."""
    return 2 * batch_size


def weights(learn: Learner) -> list[Tensor]:
    """Parameters and buffers, copied."""
    return [v.detach().clone() for v in learn.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal to the bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def random_states() -> tuple[Any, ...]:
    """What the next draws of the global generators depend on."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()
