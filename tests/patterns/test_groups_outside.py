"""A group of parameters outside of the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find, probe_memory
from adaptbs.memory import probe
from adaptbs.run import training_run
from tests.simulated_device import OnDevice, SimulatedMemory


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


class Scaled(nn.Module):
    """A loss with a parameter of its own, whose parts add up to the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5]).double())

    def forward(self, made, target):
        return (made * self.scale - target).square().mean() + self.scale.square().sum()


def of_a_module():
    loss = Scaled()
    return loss, [loss.scale], {"loss_func": loss}


def of_a_variable():
    scales = {"made": nn.Parameter(torch.tensor(0.7).double())}

    def loss(made, target):
        return (made * scales["made"] - target).square().mean()

    return loss, list(scales.values()), {"loss_func": loss}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def vectors(n=96):
    made = torch.Generator().manual_seed(1)
    return TensorDataset(*(torch.randn(n, width, generator=made).double() for width in (8, 1)))


@pytest.mark.parametrize("make_loss", [of_a_module, of_a_variable])
@pytest.mark.parametrize("lr", [None, 0.1])
def test_looking_leaves_it_as_it_was(make_loss, lr, monkeypatch):
    model, (loss, outside, _) = small(), make_loss()
    monkeypatch.setattr(probe, "memory_of", lambda devices: SimulatedMemory(1e6))
    optimizer = Adam([*model.parameters(), *outside], 0.1)
    grads = [torch.ones_like(p) for p in outside]
    for p, grad in zip(outside, grads, strict=True):
        p.grad = grad
    before = [p.detach().clone() for p in outside]
    bs_find(model, loss, DataLoader(vectors(), 8), lr=lr, optimizer=optimizer)
    probe_memory(model, loss, DataLoader(vectors(), 8), optimizer=optimizer)
    assert all(map(torch.equal, outside, before))
    assert all(p.grad is grad and grad.eq(1).all() for p, grad in zip(outside, grads, strict=True))


@pytest.mark.parametrize("make_loss", [of_a_module, of_a_variable])
@pytest.mark.parametrize("place", ["nowhere", "backward", "step"])
def test_trials_and_running_out_of_memory_train_it_once(make_loss, place, monkeypatch):
    """Without BatchNorm and dropout a run trains as one on a device with all the memory there is."""
    memory = SimulatedMemory(1e6)
    monkeypatch.setattr(training_run, "memory_of", lambda *_: memory)
    model, (_, outside, given) = small(), make_loss()
    optimizer = Adam([*model.parameters(), *outside], 0.01)
    left = 3

    def fail(where):
        nonlocal left
        left -= where == place
        if where == place and left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. (injected)")

    OnDevice(model, memory, 1000, fail=fail)
    optimizer.register_step_pre_hook(lambda *_: fail("step"))
    loader = AdaptiveDataLoader(
        vectors(), 8, shuffle=True, model=model, optimizer=optimizer, epochs=2, lr_scaling="none",
        target=lambda noise_scale, batch_size, progress: 8 * 2 ** int(3 * progress), **given,
    )  # fmt: skip
    seen = []
    for _ in range(2):
        for batch in loader:
            seen.append(batch)
            loader.step(batch)
    again, (loss, others, _) = small(), make_loss()
    plain = Adam([*again.parameters(), *others], 0.01)
    for x, y in seen:
        loss(again(x), y).backward()
        plain.step()
        plain.zero_grad()
    assert place == "backward" or max(len(x) for x, _ in seen) > 8
    torch.testing.assert_close([*model.parameters(), *outside], [*again.parameters(), *others], rtol=1e-8, atol=1e-10)
