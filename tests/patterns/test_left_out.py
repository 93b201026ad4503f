"""Samples that collate_fn= leaves out, as those that cannot be read: a few are no doubt, many are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import default_collate

from adaptbs import AdaptiveDataLoader
from tests.integration.training import FORCED, Numbered, adaptive, doubling

N, START = 600, 8


def without(left_out):
    """As people write it around a dataset that returns None for what it cannot read; nothing is left of no sample."""

    def collate(items):
        return default_collate([item for item in items if not left_out(item[2])])

    return collate


def trained(left_out, seed: int = 0) -> tuple[AdaptiveDataLoader, list[int]]:
    torch.manual_seed(seed)
    model = nn.Linear(8, 1)
    optimizer = Adam(model.parameters(), 1e-3)
    loader = AdaptiveDataLoader(
        Numbered(N), START, True, model=model, optimizer=optimizer, epochs=2, collate_fn=without(left_out),
        overhead=0.5, step_time=(1e-3, 1e-6), decide_every=0.02, max_batch_size=64, target=doubling(),
    )  # fmt: skip
    seen = []
    for _ in range(2):
        for x, y, i in loader:
            seen += i.tolist()
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return loader, seen


@pytest.mark.parametrize("seed", range(4))
def test_one_of_forty_is_no_doubt(seed, caplog):
    """One of eight had held the batch, with a warning, wherever the step that missed it was measured."""
    loader, seen = trained(lambda i: i % 40 == 0, seed)
    reasons = loader.history.decisions()["reason"]
    assert "rows are not samples" not in reasons and loader.batch_size == 64
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(seen) == sorted(2 * [i for i in range(N) if i % 40])


@pytest.mark.parametrize("of", [3, 4])
def test_a_third_or_a_quarter_of_them_holds_the_batch(of, caplog):
    loader, _ = trained(lambda i: i % of == 0)
    assert loader.batch_size == START
    assert loader.history.decisions()["reason"][-1] == "rows are not samples"
    assert caplog.text.count("take out of it what collate_fn= leaves out") == 1 == len(caplog.records)


def test_the_first_sample_may_be_one_of_them(caplog):
    """It is what is tried twice, of a first batch that is not whole, and then nothing is left to collate."""
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    loader = adaptive(
        Numbered(N), model, optimizer, START, shuffle=False, collate_fn=without(lambda i: i % 50 == 0),
        target=doubling(), **FORCED,
    )  # fmt: skip
    for x, y, _ in loader:
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loader.batch_size > START and not caplog.text
