"""The Learners of the fastai examples: untouched at a constant batch, and each sample once where the batch grows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fastai.basics import Callback, Learner, set_seed

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import doubling, same, weights

EXAMPLES = Path(__file__).parents[3] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flights() -> Learner:
    module = example("fastai_flights")
    return module.make_learner(module.read_table(1200), bs=32)


def collab() -> Learner:
    module = example("fastai_collab")
    return module.make_learner(module.make_ratings(1200), bs=32)


def text() -> Learner:
    module = example("fastai_text")
    return module.make_learner(module.read_lines(500), bs=16)


def mnist() -> Learner:
    module = example("fastai_mnist")
    x, y = module.read_digits()
    return module.make_learner((x[:900], y[:900]), (x[900:1000], y[900:1000]), bs=32)


LEARNERS = pytest.mark.parametrize("make", [flights, collab, text, mnist])


def fit(learn: Learner, *cbs: Callback, epochs: int = 1) -> Learner:
    set_seed(4)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 1e-2, cbs=list(cbs))
    return learn


def contents(batch: Any) -> list[float]:
    """A number for each sample, by which it is known in any order; padding, which is word 1, is not counted."""
    plain = [t.detach().as_subclass(torch.Tensor) for t in batch]
    words = [t * (t != 1) if t.dtype == torch.int64 and t.dim() > 1 else t for t in plain]
    return sum(t.double().reshape(len(t), -1).sum(1) for t in words).tolist()


class Delivered(Callback):
    """The contents of every training batch."""

    run_valid = False

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def before_batch(self) -> None:
        self.batches.append(contents((*self.xb, *self.yb)))


@cache
def stock(make: Callable[[], Learner]) -> tuple[list[torch.Tensor], list[list[float]]]:
    """Weights and contents of the run without adaptbs."""
    delivered = Delivered()
    return weights(fit(make(), delivered)), delivered.batches


@LEARNERS
def test_at_a_constant_batch_weights_are_stocks_to_the_bit(make):
    ours = make()
    fit(ours, AdaptiveBatchSize(max_batch_size=ours.dls.bs, overhead=0))
    assert same(stock(make)[0], weights(ours))


@LEARNERS
def test_also_where_it_is_measured(make):
    ours = make()
    callback = AdaptiveBatchSize(max_batch_size=ours.dls.bs, overhead=0.5)
    fit(ours, callback)
    assert same(stock(make)[0], weights(ours))
    assert "measurement" in callback.history.to_dict()["event"]


@LEARNERS
def test_grown_batches_hold_the_samples_that_stocks_would(make):
    delivered = Delivered()
    fit(make(), AdaptiveBatchSize(target=doubling, overhead=0, budget="epochs"), delivered)
    of_stock, ours = stock(make)[1], delivered.batches
    assert max(map(len, ours)) > len(of_stock[0]) == len(ours[0])
    all_of_stock, all_of_ours = (sorted(value for batch in batches for value in batch) for batches in (of_stock, ours))
    assert len(all_of_ours) == len(all_of_stock)
    torch.testing.assert_close(all_of_ours, all_of_stock)
