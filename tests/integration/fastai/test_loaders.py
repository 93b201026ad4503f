"""AdaptiveBatchSize on fastai's other loaders: what can be cut anew is, what cannot is refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import (
    CrossEntropyLossFlat,
    DataBlock,
    DataLoader,
    DataLoaders,
    Learner,
    MSELossFlat,
    RandomSplitter,
    RegressionBlock,
    SkipItemException,
    TensorCategory,
    TfmdDL,
    TransformBlock,
)
from fastai.callback.data import PartialDL, WeightedDL
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.text.data import SortedDL, TensorText, pad_input
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import IterableDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import Rows, Watch, doubling, make_learner, make_tabular_learner, same, weights


def growing() -> AdaptiveBatchSize:
    return AdaptiveBatchSize(target=doubling, overhead=0, max_batch_size=80)


def loader(kind: Any, rows: Any = Rows, **options: Any) -> Any:
    return kind(rows(203), **{"bs": 20, "shuffle": True, "num_workers": 0, **options})


LOADERS = {
    "TfmdDL": partial(loader, TfmdDL),
    "TfmdDL in order": partial(loader, TfmdDL, shuffle=False),
    "WeightedDL": partial(loader, WeightedDL, wgts=np.arange(203) + 1.0),
    "WeightedDL, workers": partial(loader, WeightedDL, wgts=np.arange(203) + 1.0, num_workers=2),
    "PartialDL": partial(loader, PartialDL, partial_n=130),
    "PartialDL, drop_last": partial(loader, PartialDL, partial_n=130, drop_last=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_same_samples_in_the_same_order(name: str) -> None:
    stock, ours, callback = Watch(), Watch(), growing()
    make_learner(train=LOADERS[name]).fit(2, cbs=stock)
    make_learner(train=LOADERS[name]).fit(2, cbs=[callback, ours])
    assert ours.indices == stock.indices
    assert ours.totals[-1][0] < stock.totals[-1][0]
    assert all(batches == n_iter for batches, n_iter in ours.totals)
    assert callback.history.to_dict()["progress"][-1] > 0.8


def test_a_tabular_learner_with_replacement_gets_as_many_samples() -> None:
    learn, watch = make_tabular_learner(), Watch()
    learn.fit(2, cbs=[growing(), watch])
    assert learn.dls.train.drop_last
    assert [sum(sizes) for sizes in watch.sizes] == [250, 250]
    assert watch.totals[1] == (4, 4)


class Gaps(Rows):
    """Every seventh item is to be skipped, and so is a stretch longer than a batch."""

    def __getitem__(self, i: int) -> Any:
        if i % 7 == 0 or 20 <= i < 90:
            raise SkipItemException
        return super().__getitem__(i)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_items_are_left_out(num_workers: int) -> None:
    watch = Watch()
    train = partial(loader, TfmdDL, Gaps, shuffle=False, num_workers=num_workers)
    make_learner(train=train).fit(2, cbs=[growing(), watch])
    kept = [i for i in range(203) if i % 7 and not 20 <= i < 90]
    assert watch.indices == [kept, kept]


def test_the_hooks_of_the_loader_are_called_as_ever() -> None:
    called: list[str] = []

    class Hooked(DataLoader):
        def before_iter(self) -> None:
            called.append("before_iter")

        def after_batch(self, batch: Any) -> Any:
            called.append("after_batch")
            return batch

        def after_iter(self) -> None:
            called.append("after_iter")

    learn, watch = make_learner(train=partial(loader, Hooked)), Watch()
    learn.fit(1, cbs=[growing(), watch])
    assert called == ["before_iter", *len(watch.sizes[0]) * ["after_batch"], "after_iter"]


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        rows = Rows(100)
        return (rows[i] for i in range(100))


REFUSED = {
    "torch DataLoader": (lambda: TorchLoader(Rows(100), batch_size=20), "is a DataLoader, not a fastai DataLoader"),
    "iterable dataset": (lambda: DataLoader(Stream(), bs=20, n=100), "has no index"),
    "ready-made batches": (lambda: DataLoader([Rows(20)[:] for _ in range(5)], bs=None), "no batch size of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loader_that_cannot_be_cut_anew_is_refused_and_nothing_changes(name: str) -> None:
    train, message = REFUSED[name]
    stock = make_learner(train=train)
    stock.fit(1)
    learn = make_learner(train=train)
    with pytest.raises(TypeError, match=message):
        learn.fit(1, cbs=AdaptiveBatchSize())
    learn.fit(1)
    assert same(weights(stock), weights(learn))


def grown_fit(learn: Any, epochs: int = 2, **arguments: Any) -> tuple[AdaptiveBatchSize, list[int]]:
    """Fit with growth forced and measuring on; the rows of each training batch."""
    rows: list[int] = []
    watch = Watch()
    watch.before_batch = lambda: rows.append(len(watch.yb[0]))
    watch.before_train = watch.after_train = lambda: None
    callback = AdaptiveBatchSize(**{"target": doubling, "max_batch_size": 64, "overhead": 0.3} | arguments)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-3, cbs=[callback, watch])
    return callback, rows


def test_a_collab_learner() -> None:
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame({
        "user": rng.integers(0, 20, 600), "item": rng.integers(0, 30, 600), "rating": rng.uniform(1, 5, 600)
    })  # fmt: skip
    dls = CollabDataLoaders.from_df(ratings, bs=16, seed=1)
    callback, rows = grown_fit(collab_learner(dls, n_factors=5, y_range=(0.5, 5.5)), budget="epochs")
    assert max(rows) == 64 and rows[0] == 16
    assert sum(rows) == 2 * (480 - 480 % 16)  # (drop_last)
    assert "measurement" in callback.history.to_dict()["event"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_texts_sorted_by_length_and_padded(shuffle: bool) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, 320).tolist()
    texts = [(TensorText(torch.randint(1, 30, (n,))), TensorCategory(n % 2)) for n in lengths]

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.embed(x).mean(1))

    pad = partial(pad_input, pad_idx=0)
    dls = DataLoaders(
        *(SortedDL(texts, bs=16, shuffle=shuffle, before_batch=pad, sort_func=lambda item: len(item[0])) for _ in "tv")
    )
    callback, rows = grown_fit(Learner(dls, Bag(), loss_func=CrossEntropyLossFlat()), budget="epochs")
    assert max(rows) == 64 and sum(rows) == 2 * len(texts)
    assert "measurement" in callback.history.to_dict()["event"]


def test_a_data_block() -> None:
    block = DataBlock(
        blocks=(TransformBlock, RegressionBlock), get_x=lambda i: torch.full((3,), i / 100), get_y=lambda i: i / 100,
        splitter=RandomSplitter(0.2, seed=1),
    )  # fmt: skip
    dls = block.dataloaders(list(range(400)), bs=16)
    callback, rows = grown_fit(Learner(dls, nn.Linear(3, 1), loss_func=MSELossFlat()), budget="epochs")
    assert max(rows) == 64 and sum(rows) == 2 * 320
    assert "measurement" in callback.history.to_dict()["event"]
    assert dls.train.bs == 16


def test_parts_of_a_learner_given_to_a_plain_loop_are_told_what_a_learner_takes() -> None:
    learn = make_learner()
    learn.create_opt()
    torchs = torch.optim.SGD(learn.model.parameters(), 0.1)
    for given in ({"model": learn}, {"optimizer": learn.opt}, {"loader": learn.dls.train}):
        arguments = {"model": learn.model, "optimizer": torchs, "loader": TorchLoader(Rows(64), 8), **given}
        with pytest.raises(TypeError, match=r"A Learner takes cbs=AdaptiveBatchSize\(\).*learn.bs_find\(\)"):
            AdaptiveDataLoader.from_loader(arguments.pop("loader"), **arguments)
