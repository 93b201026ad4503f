import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from adaptbs.gradients.batch_loss import BatchLoss
from adaptbs.gradients.source import BestSource

BATCH = (torch.randn(8, 4), torch.randn(8, 1))


def small_size(model: nn.Module, batch=BATCH) -> int:
    return BestSource(model, BatchLoss(mse_loss)).measure(batch).small_size


def test_linear_layers_are_measured_per_example():
    assert small_size(nn.Linear(4, 1)) == 1


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "BatchNorm"),
        (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 1, 2), nn.Flatten()), "convolutions"),
        (nn.Sequential(nn.Linear(4, 1), nn.PReLU()), "PReLU"),
    ],
)
def test_anything_else_by_halves_and_the_reason_is_logged(model, why, caplog):
    with caplog.at_level(logging.INFO, "adaptbs"):
        source = BestSource(model, BatchLoss(mse_loss))
        assert source.measure(BATCH).small_size == 4
        source.measure(BATCH)
    assert caplog.text.count(why) == 1


def test_batch_norm_in_evaluation_mode_does_not_stand_in_the_way_until_it_trains():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1)).eval()
    source = BestSource(model, BatchLoss(mse_loss))
    assert source.measure(BATCH).small_size == 1
    model.train()
    assert source.measure(BATCH).small_size == 4


def test_a_layer_unfrozen_later_is_counted():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    source = BestSource(model, BatchLoss(mse_loss))
    frozen = float(source.measure(BATCH).small)
    model.requires_grad_(True)
    assert float(source.measure(BATCH).small) > frozen
