"""With growth off, by either way, a run from any batch is the stock loader's to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered, stock

N, EPOCHS = 512, 12


def trained(make, optimizer_class) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = optimizer_class(model.parameters(), 0.01)
    loader = make(model, optimizer)
    for _ in range(EPOCHS):
        for x, y, _ in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("off", [lambda batch: {"overhead": 0}, lambda batch: {"max_batch_size": batch}])
@pytest.mark.parametrize("optimizer_class", [SGD, Adam])
@pytest.mark.parametrize("batch", [8, 128, N])
def test_from_any_batch(batch, optimizer_class, off):
    """Of a large first batch the noise would allow a smaller one early in the run."""

    def ours(model, optimizer):
        return AdaptiveDataLoader(
            Numbered(N), batch, shuffle=True, model=model, optimizer=optimizer, epochs=EPOCHS, step_time=(1e-4, 1e-5),
            **off(batch),
        )  # fmt: skip

    assert torch.equal(trained(ours, optimizer_class), trained(lambda *_: stock(Numbered(N), batch), optimizer_class))
