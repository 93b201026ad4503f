"""A thread beside the loop that calls the model, as one that serves or draws predictions."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered

N, START = 256, 16


def in_a_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def trained(beside: str | None, gradients: bool) -> tuple[AdaptiveDataLoader, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        Numbered(N), START, shuffle=True, model=model, optimizer=optimizer, epochs=2, overhead=0.5,
        step_time=(1e-3, 1e-6), max_batch_size=START,
    )  # fmt: skip

    def predict() -> None:
        with torch.set_grad_enabled(gradients):
            model(torch.ones(5, 8))

    for _ in range(2):
        for x, y, _ in loader:
            optimizer.zero_grad()
            prediction = model(x)
            if beside == "before the backward pass":
                in_a_thread(predict)
            if beside == "within the backward pass":
                prediction.grad_fn.next_functions[1][0].register_hook(lambda *_: in_a_thread(predict))
            nn.functional.mse_loss(prediction, y).backward()
            optimizer.step()
    return loader, model[0].weight.detach()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("beside", ["before the backward pass", "within the backward pass"])
def test_it_is_no_part_of_the_step_that_is_measured(beside, gradients, caplog):
    """Its call had been taken for the step's, and one within the backward pass had ended the measuring for good."""
    loader, weights = trained(beside, gradients)
    alone, expected = trained(None, gradients)
    assert torch.equal(weights, expected)
    assert loader.noise_scale == alone.noise_scale is not None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
