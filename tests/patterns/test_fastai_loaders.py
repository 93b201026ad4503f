"""fastai DataLoaders of people's own: those that say how items are read and collated grow, the others are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoader, TfmdDL

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import Rows, Watch, doubling, make_learner, same, weights

ROWS = Rows(203)


def loader(kind: Any, **options: Any) -> Any:
    return kind(ROWS, **{"bs": 20, "shuffle": True, "num_workers": 0, **options})


def growing() -> AdaptiveBatchSize:
    return AdaptiveBatchSize(target=doubling, overhead=0, max_batch_size=80)


class MakesBatches(DataLoader):
    """Slices tensors, which is faster than items one by one, and shifts them."""

    def create_batches(self, samps: Any) -> Any:
        indices = list(samps)
        for i in range(0, len(indices), self.bs):
            x, y, index = ROWS[indices[i : i + self.bs]]
            yield x + 100, y, index


class Inherits(MakesBatches):
    pass


class ChangesBatches(DataLoader):
    def __iter__(self) -> Any:
        for x, y, index in super().__iter__():
            yield x + 100, y, index


class TakesEverySecond(DataLoader):
    def sample(self) -> Any:
        return (index for i, index in enumerate(super().sample()) if i % 2)


class ByBudget(TfmdDL):
    """Batches of as many items as a budget allows."""

    def chunkify(self, b: Any) -> Any:
        kept: list[Any] = []
        for item in b:
            kept.append(item)
            if sum(1 + int(i) % 5 for _, _, i in kept) >= 60:
                yield kept
                kept = []
        if kept:
            yield kept


class ReadyMade(DataLoader):
    """Items are batches of their own, though there is a batch size."""

    @property
    def prebatched(self) -> bool:
        return True


def made_by_a_function(samps: Any) -> Any:
    indices = list(samps)
    yield from (ROWS[indices[i : i + 20]] for i in range(0, len(indices), 20))


REFUSED = {
    "create_batches": (partial(loader, MakesBatches), "whose create_batches is MakesBatches's own.*do_item"),
    "create_batches of a parent": (partial(loader, Inherits), "Inherits whose create_batches is MakesBatches's own"),
    "create_batches given": (
        partial(loader, DataLoader, create_batches=made_by_a_function), "whose create_batches was given to it",
    ),
    "__iter__": (partial(loader, ChangesBatches), "ChangesBatches whose __iter__ is .*after_batch"),
    "sample": (partial(loader, TakesEverySecond), "TakesEverySecond whose sample is .*get_idxs"),
    "chunkify": (partial(loader, ByBudget), "ByBudget whose chunkify is .*before_batch"),
    "prebatched": (partial(loader, ReadyMade), "ReadyMade whose prebatched is .*bs=None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_loader_that_makes_its_batches_is_refused_and_nothing_changes(name: str) -> None:
    train, message = REFUSED[name]
    stock = make_learner(train=train)
    learn = make_learner(train=train)
    before = weights(learn)
    with pytest.raises(TypeError, match=message):
        learn.fit(1, cbs=growing())
    assert same(weights(learn), before)
    stock.fit(1)
    learn.fit(1)
    assert same(weights(stock), weights(learn))


class Balanced(DataLoader):
    """As many indices of the few as of the many, drawn with replacement."""

    def get_idxs(self) -> list[int]:
        few = [i for i in range(len(self.dataset)) if i % 10 == 0]
        many = [i for i in range(len(self.dataset)) if i % 10]
        return [self.rng.choice(kind) for _ in range(-(-self.n // 2)) for kind in (few, many)][: self.n]


class Recent(DataLoader):
    """The newest samples twice an epoch."""

    def get_idxs(self) -> Any:
        return self.shuffle_fn([*range(len(self.dataset)), *range(150, len(self.dataset))])


def only_even() -> list[int]:
    return list(range(0, 203, 2))


class Sliced(DataLoader):
    """Items are indices, of which the batch is sliced at once, as in fastai's TabDataLoader."""

    def do_item(self, s: Any) -> Any:
        return s

    def create_batch(self, b: Any) -> Any:
        x, y, index = ROWS[np.array(b)]
        return x + 100, y, index


class Shifted(DataLoader):
    def after_batch(self, batch: Any) -> Any:
        x, y, index = batch
        return x + 100, y, index


def doubled(items: Any) -> Any:
    return tuple(torch.stack(column).repeat_interleave(2, 0)[::2] + 0 for column in zip(*items, strict=True))


USED = {
    "get_idxs": partial(loader, Balanced),
    "get_idxs, workers": partial(loader, Balanced, num_workers=2),
    "get_idxs, as many as n says": partial(loader, Recent, n=256),
    "get_idxs given": partial(loader, DataLoader, get_idxs=only_even, n=102),
    "do_item and create_batch": partial(loader, Sliced),
    "after_batch": partial(loader, Shifted),
    "create_batch given": partial(loader, DataLoader, create_batch=doubled),
}


class Mean(Callback):
    def before_fit(self) -> None:
        self.rows: list[torch.Tensor] = []

    def before_batch(self) -> None:
        if self.training:
            self.rows += self.xb[0].unbind()


@pytest.mark.parametrize("name", USED)
def test_a_loader_that_says_what_an_item_or_a_batch_is_trains_on_the_same_data(name: str) -> None:
    stock, ours, x_stock, x_ours = Watch(), Watch(), Mean(), Mean()
    make_learner(train=USED[name]).fit(2, cbs=[stock, x_stock])
    make_learner(train=USED[name]).fit(2, cbs=[growing(), ours, x_ours])
    assert ours.indices == stock.indices
    assert torch.equal(torch.stack(x_ours.rows), torch.stack(x_stock.rows))
    assert len(ours.sizes[-1]) < len(stock.sizes[-1]), "it has grown"


@pytest.mark.parametrize(("name", "found"), [("more", 256), ("given", 102)])
def test_a_get_idxs_that_gives_another_number_is_refused(name: str, found: int) -> None:
    train = partial(loader, Recent) if name == "more" else partial(loader, DataLoader, get_idxs=only_even)
    learn = make_learner(train=train)
    before = weights(learn)
    with pytest.raises(TypeError, match=rf"get_idxs gives {found} indices, but its n is 203.*dls\.train\.n"):
        learn.fit(1, cbs=growing())
    assert same(weights(learn), before)
    assert "_do_one_batch" not in vars(learn)
    learn.fit(1)


class CutsItself(DataLoader):
    """As one over NumPy arrays does: the dataset cuts a batch of its own size from the first index on."""

    def create_item(self, s: int) -> int:
        return s

    def create_batch(self, b: list[int]) -> Any:
        return ROWS[b[0] : b[0] + 20]


class Joins(CutsItself):
    """By all indices that it is given."""

    def create_batch(self, b: list[int]) -> Any:
        return ROWS[b]


def test_one_whose_larger_batch_would_lose_samples_keeps_its_batch(caplog):
    stock, learn = (make_learner(train=partial(loader, CutsItself)) for _ in range(2))
    callback = AdaptiveBatchSize(target=doubling, max_batch_size=80)
    for each, cbs in ((stock, []), (learn, [callback])):
        with each.no_logging():
            each.fit(2, 1e-2, cbs=cbs)
    assert callback.batch_size == 20 and same(weights(learn), weights(stock))
    assert callback.history.records[-1]["reason"] == "rows do not follow samples"
    assert len(caplog.records) == 1 and "CutsItself" in caplog.text


@pytest.mark.parametrize("options", [{}, {"create_batch": lambda b: ROWS[[int(i) for _, _, i in b]]}])
def test_one_that_joins_all_that_it_is_given_grows(options, caplog):
    callback = growing()
    learn = make_learner(train=partial(loader, DataLoader if options else Joins, **options))
    with learn.no_logging():
        learn.fit(2, 1e-2, cbs=callback)
    assert callback.batch_size == 80 and not caplog.text
