"""Schedules stepped with an optimizer that accumulates, where an epoch is no whole number of steps.

Its last batches are left over, or make a step of their own.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import Subset

from adaptbs import AdaptiveDataLoader
from tests.integration.training import Numbered

N, BATCH, EPOCHS = 400, 16, 4  # 25 batches


def one_cycle(optimizer, total: int):
    return OneCycleLR(optimizer, 0.05, total_steps=total)


def trained(every: int, leftover: bool, schedule, by: str, *, samples: int = N, grow: bool = True):
    """The end of the schedule, the fixed run's, and the last batch size."""
    batches = -(-samples // BATCH)
    total = EPOCHS * (-(-batches // every) if leftover else batches // every)
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = SGD(model.parameters(), 0.01)
    scheduler = schedule(optimizer, total)
    loader = AdaptiveDataLoader(
        Subset(Numbered(samples), range(samples)), BATCH, shuffle=True, model=model, optimizer=optimizer,
        scheduler=scheduler, accumulation_steps=every, epochs=EPOCHS if by == "epochs=" else None, overhead=0.5,
        target=lambda noise, size, progress: int(BATCH * every * (1 + 3 * grow * progress)),
        step_time=(1e-3, 1e-5), decide_every=0.02, max_batch_size=64,
    )  # fmt: skip
    for _ in loader.epochs(EPOCHS) if by == "loader.epochs" else range(EPOCHS):
        for i, (x, y, _) in enumerate(loader):
            (nn.functional.mse_loss(model(x), y) / every).backward()
            if (i + 1) % every == 0 or (leftover and i + 1 == len(loader)):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        optimizer.zero_grad()
    return scheduler.last_epoch, total, loader.batch_size


@pytest.mark.parametrize("by", ["epochs=", "the scheduler", "loader.epochs"])
@pytest.mark.parametrize("leftover", [False, True], ids=["left over", "stepped too"])
@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("schedule", [one_cycle, CosineAnnealingLR])
def test_it_ends_where_it_would_have_ended(schedule, every, leftover, by, caplog):
    at, total, size = trained(every, leftover, schedule, by)
    assert at == total and size > 2 * BATCH and not caplog.records


@pytest.mark.parametrize(("every", "samples"), [(3, 390), (2, 384), (5, 400)])
def test_also_where_a_short_batch_or_no_batch_is_left(every, samples, caplog):
    at, total, size = trained(every, True, one_cycle, "epochs=", samples=samples)
    assert at == total and size > 2 * BATCH and not caplog.records


@pytest.mark.parametrize("leftover", [False, True])
def test_with_growth_off(leftover, caplog):
    at, total, size = trained(4, leftover, one_cycle, "epochs=", grow=False)
    assert at == total and size == BATCH and not caplog.records
