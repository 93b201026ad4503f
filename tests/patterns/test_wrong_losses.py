"""A loss that does not fit the batches: torch's own error, and what was called on what."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import Dataset, default_collate

from adaptbs import AdaptiveDataLoader

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take notes since Python 3.11")


class Pairs(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int):
        return torch.randn(8), torch.tensor([1])


def of_dict(items):
    x, y = default_collate(items)
    return {"x": x, "y": y}


class Two(nn.Linear):
    """Takes two inputs, the second of which the batches do not have."""

    def forward(self, x, mask):
        return super().forward(x * mask)


WRONG = {
    "targets of the wrong kind": ({"loss_func": F.binary_cross_entropy_with_logits}, nn.Linear(8, 1)),
    "targets of the wrong shape": ({"loss_func": F.cross_entropy}, nn.Linear(8, 2)),
    "a model that takes more": ({"loss_func": F.mse_loss}, Two(8, 1)),
    "a batch_loss of another layout": ({"batch_loss": lambda model, batch: model(batch["x"]).mean()}, nn.Linear(8, 1)),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_error_says_what_was_called_on_what_shapes(case):
    loss, model = WRONG[case]
    loader = AdaptiveDataLoader(Pairs(), 16, model=model, optimizer=SGD(model.parameters(), 0.1), epochs=1, **loss)
    with pytest.raises((RuntimeError, TypeError, ValueError)) as raised:
        loader.step(default_collate([Pairs()[i] for i in range(16)]))
    called = "loss_func(model(*inputs), target)" if "loss_func" in loss else "batch_loss(model, batch)"
    assert raised.value.__notes__ == [f"adaptbs called {called} on a batch of (float32 [16, 8], int64 [16, 1])."]


def test_the_layout_of_a_dict_is_told_by_its_keys():
    model = nn.Linear(8, 1)
    loader = AdaptiveDataLoader(
        Pairs(), 16, model=model, optimizer=SGD(model.parameters(), 0.1), epochs=1, loss_func=F.mse_loss,
        collate_fn=of_dict,
    )  # fmt: skip
    with pytest.raises(TypeError, match="batch_loss=") as raised:
        loader.step(of_dict([Pairs()[0]] * 2))
    assert "on a batch of {'x': float32 [2, 8], 'y': int64 [2, 1]}" in raised.value.__notes__[0]
