"""Each task of the third last look goes through the adaptive loop, on a handful of rows that say nothing of quality."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.common.rows import Rows
from benchmarks.quality.adaptive import Adaptive, adaptive_run
from benchmarks.quality.untuned import third_data, third_look
from benchmarks.quality.untuned.compared import DEFAULT
from benchmarks.quality.untuned.data import Halves

ROWS = 192  # three steps


def halves(x: Tensor, y: Tensor) -> Halves:
    return Halves(Rows(x, y), (x[:64], y[:64]))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images, digits = torch.randn(ROWS, 1, 14, 14, generator=generator), torch.arange(ROWS) % 10
    letters = third_data.Garbled(torch.randint(0, 30, (ROWS, third_data.LETTERS), generator=generator), 30)
    words = torch.randint(0, 1000, (ROWS, 17), generator=generator)
    pairs = torch.stack([torch.arange(ROWS) % 5, torch.arange(ROWS) % 7], 1)
    films = third_data.Preferred(pairs, torch.arange(1, 11).reshape(5, 2), torch.arange(11, 25).reshape(7, 2))
    return SimpleNamespace(
        overlaid=halves(*third_data.overlaid(images, digits, generator)),
        garbled=(letters, letters.__getitems__(range(64)), 30),
        graphs=halves(*third_data.graphs(ROWS, generator)),
        clouds=halves(third_data.cloud(images, generator), digits),
        second=SimpleNamespace(words=halves(words[:, :-1], words[:, 1:])),
        preferences=(films, films.__getitems__(range(64)), 25),
        lines=halves(*third_data.lines(images, digits, ROWS, generator)),
        lifetimes=halves(*third_data.lifetimes(ROWS, generator)),
        picture=halves(torch.rand(ROWS, 2, generator=generator), torch.rand(ROWS, 3, generator=generator)),
        feedback=halves(torch.randint(1, 4000, (ROWS, 32), generator=generator), digits.float()),
    )


@pytest.mark.parametrize("name", third_look.TASKS)
def test_a_task_goes_through_the_adaptive_loop(data, name):
    task = replace(third_look.TASKS[name](data), lr=1e-3, epochs=1)
    row = adaptive_run(task, Adaptive(DEFAULT), seed=0)
    assert row["metric"] > 0 and row["steps"] >= 3
