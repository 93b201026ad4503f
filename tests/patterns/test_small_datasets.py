"""Datasets of a few batches: no batch is taken to hold more than a whole pass."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered


def trained(dataset, start: int, epochs: int, by_shares: bool = False, each=lambda epoch: None, **arguments):
    """Train; the loader, and (samples, factor of the learning rate inside the step) of each batch."""
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    arguments = {
        "target": lambda noise, size, progress: 2 * size,
        "decide_every": 1e-6,
        "max_batch_size": 512,
    } | arguments
    loader = AdaptiveDataLoader(
        dataset, start, True, model=model, optimizer=optimizer, epochs=epochs, step_time=(1e-3, 1e-6), **arguments
    )
    sizes, rates = [], []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"] / 0.01))
    for epoch in loader.epochs(epochs) if by_shares else range(epochs):
        each(epoch)
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            sizes.append(len(x))
    return loader, sizes, rates


@pytest.mark.parametrize("n", [8, 9, 40, 41])
def test_the_rate_is_of_the_samples_that_a_pass_has(n):
    """A limit far above the dataset: the rate had gone by that."""
    loader, sizes, rates = trained(Numbered(n), 8, 12)
    assert sizes[-1] == n == loader.batch_size
    assert rates[-1] == pytest.approx(n / 8)
    assert max(loader.history.decisions()["batch_size"]) == n
    assert f"to {n} over" in str(loader.summary()) or n == 8


def test_a_run_by_progress_does_not_pay_for_a_batch_that_cannot_grow():
    """Each of its batches is all of the data, so it takes the planned samples; it had taken up to twice as many."""
    _, sizes, rates = trained(Numbered(8), 8, 10, by_shares=True)
    assert sizes == [8] * 10 and rates == pytest.approx([1.0] * 10)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_that_is_accumulated_holds_no_more_either(accumulation_steps):
    loader, _, _ = trained(Numbered(40), 4, 8, accumulation_steps=accumulation_steps)
    assert loader.global_batch_size == 40 and loader.batch_size == 40 // accumulation_steps


def test_a_large_limit_lets_the_batch_come_back_from_a_start_of_all_the_data():
    """It is no `max_batch_size` of the start, which would keep the batch."""
    loader, sizes, _ = trained(Numbered(256), 256, 12, target=lambda noise, size, progress: 64)
    assert sizes[-1] == 64 == loader.batch_size


class Shrinks(Dataset):
    """A pool of which samples are taken out between two epochs."""

    def __init__(self, n: int) -> None:
        self.data, self.n = Numbered(n), n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return self.data[i]


def test_a_dataset_that_becomes_smaller_than_the_batch():
    data = Shrinks(128)

    def take_out(epoch: int) -> None:
        if epoch == 4:
            data.n = 24

    _, sizes, rates = trained(data, 8, 6, each=take_out)
    assert sizes[-2:] == [24, 24]
    assert rates[-2:] == pytest.approx([3.0, 3.0])
