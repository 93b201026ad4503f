"""Costs of a fastai epoch and of a fastai fit against size; rows of `benchmarks.cost.scale`."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from adaptbs.fastai import AdaptiveBatchSize
from adaptbs.fastai.batches import AdaptiveBatches
from benchmarks.cost.counted import Row, Rows


def order(sizes: list[int]) -> Iterator[Row]:
    """The order of a fastai epoch: what is kept beyond what stock fastai keeps."""
    beyond = {}
    for n in sizes:
        controller = SimpleNamespace(epoch_samples=n, batch_size=10, start_batch_size=10)
        run: Any = SimpleNamespace(
            controller=controller, deliver=lambda batches, queue, next_pass: batches, goes_on=False
        )  # fmt: skip
        held = []
        for ours in (False, True):
            dl = DataLoader(Rows(n), bs=10, shuffle=True)
            tracemalloc.start()
            batches = iter(AdaptiveBatches(dl, run, lambda: None) if ours else dl)
            list(islice(batches, 10))
            held.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        beyond[n] = held[1] - held[0]
    yield Row("kept of a fastai epoch's order, beyond stock", "samples", "bytes", beyond)


def fits(numbers: list[int]) -> Iterator[Row]:
    """Fits of one fastai Learner, each with a callback of its own. fastai's own cycles are collected before."""
    dl = DataLoader(Rows(20), bs=10, create_batch=lambda items: (torch.stack(items), torch.zeros(len(items), 1)))
    learn = Learner(DataLoaders(dl, dl), nn.Linear(4, 1), loss_func=nn.functional.mse_loss)
    objects, before = {}, 0
    for n in range(-2, max(numbers) + 1):
        with learn.no_logging():
            learn.fit(1, 1e-3, cbs=AdaptiveBatchSize())
        if not n or n in numbers:
            gc.collect()
            alive = len(gc.get_objects())
            before = alive if not n else before
            objects[n] = alive - before
    yield Row("left behind after a collection", "fits of a fastai Learner", "objects", {n: objects[n] for n in numbers})
