"""Few sizes of batches for a compiled model."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.run.few_sizes import MOST, few_sizes, to_few
from adaptbs.types import Decision
from tests.integration.training import FORCED


@pytest.mark.parametrize(
    ("start", "lowest", "largest", "unit", "sizes"),
    [
        (64, 64, 2048, 1, (64, 128, 256, 512, 1024, 2048)),
        (64, 64, 100, 1, (64,)),
        (1024, 64, 8192, 1, (64, 128, 256, 512, 1024, 2048, 4096, 8192)),
        (1024, 64, 1 << 20, 1, (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)),
        (100, 25, 100, 1, (25, 50, 100)),
        (100, 7, 100, 1, (25, 50, 100)),  # 12.5 is no size
        (96, 24, 200, 4, (24, 48, 96, 192)),
        (24, 3, 24, 4, (12, 24)),  # 6 is no multiple of 4
    ],
)
def test_sizes(start, lowest, largest, unit, sizes):
    assert few_sizes(start, lowest, largest, unit) == sizes
    assert len(sizes) <= MOST


@pytest.mark.parametrize(("wanted", "found"), [(63, 64), (64, 64), (127, 64), (128, 128), (5000, 256)])
def test_the_largest_up_to_the_wanted_one_is_taken(wanted, found):
    assert to_few(Decision(wanted, "wish"), 1, (64, 128, 256)) == Decision(found, "wish")


def test_a_batch_that_stays_and_a_free_one_are_left_as_they_are():
    assert to_few(Decision(100, "held"), 100, (64, 128)).batch_size == 100
    assert to_few(Decision(100, "wish"), 64, ()).batch_size == 100


def compiled(net: nn.Module, shapes: set[int], **how) -> nn.Module:
    """A model whose compiler only writes down the batch sizes that it compiles for."""

    def backend(module, example):
        shapes.add(next(t.shape[0] for t in reversed(example) if t.dim() == 2 and t.shape[-1] == 8))
        return module.forward

    torch._dynamo.reset()
    return torch.compile(net, backend=backend, **how)


def train(model, net, n: int, drop_last: bool, target, start: int = 32, **arguments):
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    data = TensorDataset(torch.randn(n, 8), torch.randn(n, 1))
    arguments = {**FORCED, "max_batch_size": 1024, "budget": "epochs", "target": target, **arguments}
    loader = AdaptiveDataLoader(
        data, start, shuffle=True, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=2,
        drop_last=drop_last, **arguments,
    )  # fmt: skip
    sizes, told = [], []
    for _ in range(2):
        told.append(len(loader))
        seen = 0
        for i, (x, y) in enumerate(loader, 1):
            sizes.append(len(x))
            seen += len(x)
            assert (i == len(loader)) == (seen >= n - n % start * drop_last)
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert seen == n - n % start * drop_last, "each sample is delivered"
    return loader, sizes


def odd(noise_scale, batch_size, progress):
    return int(2.3 * batch_size) + 3


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("how", [{}, {"dynamic": False}], ids=str)
def test_batches_of_a_compiled_model_have_few_sizes(how, drop_last, caplog):
    shapes: set[int] = set()
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    n = 8_019  # 19 beyond a multiple of 32
    with caplog.at_level(logging.WARNING):
        loader, sizes = train(compiled(net, shapes, **how), net, n, drop_last, odd)
    assert loader.batch_sizes == (32, 64, 128, 256, 512, 1024)
    tail = set() if drop_last else {n % 32}
    assert max(sizes) > 64 and set(sizes) <= {*loader.batch_sizes, *tail}
    if how:
        assert shapes == set(sizes), "compiled for each, and none ran without"
    advised = "drop_last=True leaves that out" in caplog.text
    assert advised == (not drop_last and bool(how))


def test_others_may_have_any_size():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    loader, sizes = train(net, net, 8_019, True, odd)
    assert loader.batch_sizes is None and any(size % 32 for size in sizes)


def test_a_part_that_is_compiled_counts_too():
    shapes: set[int] = set()
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    net[0] = compiled(net[0], shapes)
    loader, sizes = train(net, net, 4_096, True, odd)
    assert set(sizes) <= set(loader.batch_sizes)


def test_accumulated_batches_too():
    shapes: set[int] = set()
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    model = compiled(net, shapes)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    data = TensorDataset(torch.randn(4_096, 8), torch.randn(4_096, 1))
    loader = AdaptiveDataLoader(
        data, 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, accumulation_steps=2,
        target=odd, budget="epochs", drop_last=True, **FORCED,
    )  # fmt: skip
    assert loader.batch_sizes == (16, 32, 64, 128, 256)
    sizes = []
    for i, (x, y) in enumerate(loader, 1):
        sizes.append(len(x))
        (nn.functional.mse_loss(model(x), y) / 2).backward()
        if i % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert max(sizes) > 16 and set(sizes) <= set(loader.batch_sizes) and sum(sizes) == 4_096


def test_of_a_learner_too():
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    from adaptbs.fastai import AdaptiveBatchSize

    sizes = []

    class Sizes(Callback):
        def before_batch(self):
            if self.training:
                sizes.append(len(self.xb[0]))

    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    data = TensorDataset(torch.randn(4_096, 8), torch.randn(4_096, 1))
    dls = DataLoaders(DataLoader(data, bs=32, shuffle=True, drop_last=True), DataLoader(data, bs=512))
    learn = Learner(dls, compiled(net, set()), loss_func=nn.MSELoss(), cbs=Sizes())
    callback = AdaptiveBatchSize(target=odd, budget="epochs", **FORCED)
    with learn.no_logging():
        learn.fit(2, 1e-3, cbs=callback)
    assert callback.batch_sizes == (32, 64, 128, 256)
    assert max(sizes) > 64 and set(sizes) <= set(callback.batch_sizes) and sum(sizes) == 2 * 4_096
