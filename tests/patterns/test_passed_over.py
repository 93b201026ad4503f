"""Loops that train on batches of one size alone: `if len(x) != batch_size: continue`, or break."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader

SAMPLES, BATCH, EPOCHS = 500, 16, 12


def goes_on(x):
    return "train" if len(x) == BATCH else "pass"


def breaks_off(x):
    return "train" if len(x) == BATCH else "break"


def breaks_off_at_a_shorter_one(x):
    return "train" if len(x) >= BATCH else "break"


def now_and_then(x):
    return "train" if torch.rand(()) < 0.7 else "pass"


def run(does, samples=SAMPLES, accumulated=1, **settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(samples, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), BATCH, shuffle=True)
    optimizer, trained = SGD(model.parameters(), 0.01), []
    if settings:
        loader = AdaptiveDataLoader.from_loader(
            loader, model=model, optimizer=optimizer, epochs=EPOCHS, accumulation_steps=accumulated,
            step_time=(1e-3, 1e-6), **settings,
        )  # fmt: skip
    for _ in range(EPOCHS):
        for i, (xb, yb) in enumerate(loader):
            what = does(xb)
            if what == "break":
                break
            if what == "train":
                nn.functional.mse_loss(model(xb), yb).backward()
                trained.append(len(xb))
                if i % accumulated == accumulated - 1:
                    optimizer.step()
                    optimizer.zero_grad()
    return trained, loader


def doubling(noise_scale, batch_size, progress):
    return 2 * batch_size


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("samples", [SAMPLES, 512])
@pytest.mark.parametrize("does", [goes_on, breaks_off])
def test_it_goes_back_to_the_first_size_and_is_held(does, samples, accumulated, caplog):
    stock, _ = run(does, samples)
    trained, loader = run(does, samples, accumulated, target=doubling)
    assert set(trained) == {BATCH} and len(trained) > 0.6 * len(stock)
    assert loader.batch_size == BATCH
    assert loader.history[-1]["reason"] == "batches of another size are passed over"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"goes back to {BATCH}" in warning and "drop_last=True" in warning and f"max_batch_size={BATCH}" in warning


@pytest.mark.parametrize("does", [breaks_off_at_a_shorter_one, now_and_then])
def test_a_loop_that_trains_on_larger_ones_grows(does, caplog):
    trained, loader = run(does, target=doubling, max_batch_size=4 * BATCH)
    assert loader.batch_size == 4 * BATCH and Counter(trained)[4 * BATCH] > 10
    assert not caplog.records


def test_an_accuracy_on_the_training_data_after_each_epoch_is_no_such_loop(caplog):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = SGD(model.parameters(), 0.01)
    loader = AdaptiveDataLoader(
        TensorDataset(x, x.sum(1, keepdim=True)), BATCH, model=model, optimizer=optimizer, epochs=EPOCHS,
        target=doubling, step_time=(1e-3, 1e-6), max_batch_size=2 * BATCH,
    )  # fmt: skip
    for _ in range(EPOCHS):
        for xb, yb in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(xb), yb).backward()
            optimizer.step()
        for xb, _ in loader:
            model(xb)
    assert loader.batch_size == 2 * BATCH and "goes back" not in caplog.text
