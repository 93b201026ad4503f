"""A run's memory on a CUDA device, which tests/helpers/cuda.py stands for."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader
from adaptbs.memory import trial
from tests.helpers.allocator import MiB
from tests.helpers.cuda import FakeCuda
from tests.simulated_device import OnDevice

PER_SAMPLE, FIXED, TOTAL = MiB, 50 * MiB, 1000 * MiB
mse_loss = nn.functional.mse_loss


@pytest.fixture
def tried(monkeypatch) -> list[int]:
    """The sizes that were tried, in order."""
    sizes: list[int] = []

    def peak(model, loss, batch, *rest):
        sizes.append(len(batch[0]))
        return run(model, loss, batch, *rest)

    run = trial._peak
    monkeypatch.setattr(trial, "_peak", peak)
    return sizes


def train(cuda: FakeCuda, after_step=lambda: None, wish: int = 4096, **arguments):
    """A plain loop that a batch too large would end; the loader, and the sizes that were run."""
    model = cuda.place(nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    OnDevice(model, cuda.memory, PER_SAMPLE, fixed=FIXED)
    data = TensorDataset(torch.randn(8_000, 8), torch.randn(8_000, 1))
    loader = AdaptiveDataLoader(
        data, 64, shuffle=True, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1,
        target=lambda *_: wish, max_batch_size=4096, budget="epochs", decide_every=0.02, **arguments,
    )  # fmt: skip
    sizes = []
    for x, y in loader:
        x, y = x.to("cuda", non_blocking=True), y.to("cuda", non_blocking=True)
        sizes.append(len(x))
        mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()
    return loader, sizes


RESETS = {
    "never": lambda: None,
    "after each step": lambda: torch.cuda.reset_peak_memory_stats(),
    "after each step, and the cache": lambda: (torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()),
}


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("expandable", [False, True])
def test_a_loop_may_reset_the_peak_statistics(resets, expandable, tried):
    with FakeCuda(TOTAL, expandable=expandable) as cuda:
        loader, sizes = train(cuda, RESETS[resets])
        assert 0.8 * 0.9 * TOTAL <= FIXED + max(sizes) * PER_SAMPLE <= 0.9 * TOTAL
        assert "memory" in loader.history.decisions()["reason"]
        assert cuda.memory.ooms <= 2, "in trials alone"
    assert max(Counter(tried).values()) == 1, "each size is tried once"
    assert len(tried) <= 8


@pytest.mark.parametrize("resets", RESETS)
def test_an_integrated_gpu_never_runs_out(resets, tried):
    with FakeCuda(TOTAL, integrated=True) as cuda:
        _, sizes = train(cuda, RESETS[resets])
        assert 0.8 * 0.9 * TOTAL <= FIXED + max(sizes) * PER_SAMPLE <= 0.9 * TOTAL
        assert (cuda.memory.ooms, cuda.memory.retries) == (0, 0)
    assert max(Counter(tried).values()) == 1


@pytest.mark.parametrize("resets", RESETS)
def test_what_was_not_tried_is_not_run(resets, tried):
    with FakeCuda(100 * TOTAL) as cuda:
        _, sizes = train(cuda, RESETS[resets], wish=512)
    assert max(sizes) == 512 and cuda.memory.ooms == 0
    assert tried == [512], "where memory is plenty, a size takes one trial"


@pytest.mark.parametrize(("resets", "largest"), [("never", 900), ("after each step", 128)])
def test_where_no_size_can_be_tried_statistics_that_were_reset_clear_none(resets, largest, monkeypatch):
    def fails(*_, **__):
        raise ValueError("this loss takes no repeated batch")

    monkeypatch.setattr("adaptbs.memory.trial.try_size", fails)
    with FakeCuda(TOTAL) as cuda:
        _, sizes = train(cuda, RESETS[resets])
        assert cuda.memory.ooms == 0 and max(sizes) <= largest
        assert max(sizes) > 700 or resets != "never"
