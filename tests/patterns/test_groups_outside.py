"""A group of parameters outside of the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam
from torch.utils.data import TensorDataset

from adaptbs import AdaptiveDataLoader


class Margin(nn.Module):
    """As ArcFace: the loss has the weights of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, embedded, target):
        return F.cross_entropy(F.linear(F.normalize(embedded), F.normalize(self.weight)) * 8, target)


class Centres(Margin):
    def forward(self, embedded, target):
        return (embedded - self.weight[target]).square().mean()


def joint(model, loss):
    return [{"params": model.parameters()}, {"params": loss.parameters(), "lr": 0.1}]


def loss_first(model, loss):
    return joint(model, loss)[::-1]


def by_layer(model, loss):
    return [{"params": layer.parameters()} for layer in model] + joint(model, loss)[1:]


@pytest.mark.parametrize("loss_class", [Margin, Centres])
@pytest.mark.parametrize(("groups", "outside"), [(joint, "group 1"), (loss_first, "group 0"), (by_layer, "group 2")])
def test_a_group_outside_of_the_model_is_named(groups, outside, loss_class):
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), loss_class()
    optimizer = Adam(groups(model, loss), 1e-3)
    data = TensorDataset(torch.randn(256, 8), torch.randint(0, 3, (256,)))
    loader = AdaptiveDataLoader(
        data, 16, True, model=model, optimizer=optimizer, loss_func=loss, epochs=2, by_group=True, overhead=0.5,
        step_time=(1e-3, 1e-6), max_batch_size=16,
    )  # fmt: skip
    assert loader.views == {}
    for _ in range(2):
        for x, y in loader:
            loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert loader.views.keys() == {f"group {i}" for i in range(len(optimizer.param_groups))}
    assert loader.views[outside].doubt == "no parameter of the model" and loader.views[outside].simple is None
    assert all(view.measurements > 4 for name, view in loader.views.items() if name != outside)
