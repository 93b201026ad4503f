"""Layers that do not notice that they are measured, outputs changed in place, and gradients that no layer explains."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.terms import Unsupported
from tests.oracle.test_in_step_layers import Mean, brute, measured

N = 6


def loss_of(model, batch):
    return model(batch[0]).square().sum(1).mean()


def zeroed(model):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return model


class Noticing(nn.Module):
    """Keeps what it sees, counts its calls, and draws from Python's and NumPy's generators."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("average", torch.zeros(()))
        self.calls, self.kept, self.latest = 0, [], None

    def forward(self, x):
        self.calls += 1
        self.kept.append(x)
        self.latest, self.average = x, 0.9 * self.average + x.detach().mean()
        return x * self.scale + 0 * (random.random() + np.random.rand())


def test_a_layer_of_the_users_own_does_not_notice_that_it_is_run_again():
    torch.manual_seed(0)
    model, seen = nn.Sequential(Noticing(), nn.Linear(8, 3)), []
    own = model[0]
    own.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    own.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))
    source, batch = InStep(model), (torch.randn(N, 8),)
    source.arm(N)
    loss = loss_of(model, batch)
    average, latest = own.average, own.latest
    states = random.getstate(), np.random.get_state()[2]
    loss.backward()
    norms = source.norms()
    source.disarm()
    assert (random.getstate(), np.random.get_state()[2]) == states
    assert (own.calls, len(own.kept), len(seen)) == (1, 1, 1)
    assert own.average is average and own.latest is latest
    model.zero_grad()
    assert (float(norms.small), float(norms.large)) == pytest.approx(brute(model, loss_of, batch), rel=1e-4)


class Then(nn.Module):
    """A layer whose output is changed in place."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self._change = layer, change

    def forward(self, x):
        y = self.layer(x)
        return self._change(y)


@pytest.mark.parametrize("change", [torch.relu_, lambda y: y.add_(1)], ids=["relu_", "+="])
@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.InstanceNorm1d(5, affine=True)], ids=repr
)
@pytest.mark.parametrize("prepare", [lambda model: model, zeroed], ids=["None", "zero"])
def test_an_output_that_is_changed_in_place(layer, change, prepare):
    torch.manual_seed(1)
    model, batch = nn.Sequential(nn.Linear(8, 8), Then(layer, change), Mean(), nn.Linear(8, 3)), (torch.randn(N, 5, 8),)
    norms = measured(prepare(model), loss_of, batch)
    model.zero_grad()
    assert (float(norms.small), float(norms.large)) == pytest.approx(brute(model, loss_of, batch), rel=1e-4)


class Grown(nn.Module):
    """A convolution that is used on an image and on its larger result."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.tanh(self.layer(torch.tanh(self.layer(x)))).flatten(2).mean(2)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(6, 6, 3, padding=2, groups=2), nn.ConvTranspose1d(6, 6, 3)], ids=["Conv1d", "ConvTranspose1d"]
)
@pytest.mark.parametrize("length", range(3, 12))
def test_a_convolution_used_at_two_sizes(layer, length):
    torch.manual_seed(2)
    model, batch = Grown(layer), (torch.randn(N, 6, length),)
    norms = measured(model, loss_of, batch)
    model.zero_grad()
    assert (float(norms.small), float(norms.large)) == pytest.approx(brute(model, loss_of, batch), rel=1e-4)


class Borrowing(nn.Module):
    """Uses the weight of a layer without calling it."""

    def __init__(self, first):
        super().__init__()
        self.first, self.layer = first, nn.Linear(8, 3)

    def forward(self, x):
        return F.linear(self.first(x), self.layer.weight, self.layer.bias)


@pytest.mark.parametrize("first", [nn.Identity(), nn.Linear(8, 8)], ids=repr)
def test_a_weight_used_outside_its_layer_is_refused_where_gradients_are_set_to_zero(first):
    with pytest.raises(Unsupported, match=r"outside its own layer|not the sum"):
        measured(zeroed(Borrowing(first)), loss_of, (torch.randn(N, 8),))


class Table(nn.Module):
    """Returns its parameter, as a table of queries does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, 8))

    def forward(self):
        return self.weight


def test_a_layer_that_returns_its_parameter_is_refused_and_left_without_a_hook():
    model = nn.ModuleDict({"table": Table(), "head": nn.Linear(8, 3)})

    def loss(model, batch):
        return loss_of(model["head"], (batch[0] + model["table"](),))

    for _ in range(2):
        with pytest.raises(Unsupported, match="returns its parameter"):
            measured(model, loss, (torch.ones(N, 8),))
    assert not model["table"].weight._backward_hooks


def test_a_layer_that_is_called_on_a_parameter_is_refused():
    """A table of as many classes as there are examples."""
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(8, 3))
    classes = nn.Parameter(torch.randn(N, 8))

    def loss(model, batch):
        return (model[0](batch[0]) @ model[1](classes).T).square().mean()

    with pytest.raises(Unsupported, match="is called on a parameter"):
        measured(model, loss, (torch.ones(N, 8),))


class Beside(nn.Module):
    """A layer with a table for the positions of a sequence beside it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x, table):
        return x + table * self.scale


class Magnitude(nn.Module):
    """Scales what two layers give that it is handed by keyword alone, as DoRA's does in peft."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 1)

    def forward(self, x, *, down, up, scaling=2.0, base=None):
        norm = up(down(torch.eye(8))).T.detach().norm(dim=1)
        scale = self.weight / norm
        return (scale - 1) * (0 if base is None else base) + scale * up(down(x)) * scaling


class Decomposed(nn.Module):
    """A frozen layer with a trained one of low rank beside it."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.magnitude = Magnitude()
        self.base.requires_grad_(False)

    def forward(self, x):
        base = self.base(x)
        return (base + self.magnitude(x, down=self.down, up=self.up, base=base)).mean(1)


def test_a_layer_that_takes_arguments_by_keyword_alone():
    torch.manual_seed(7)
    model, batch = Decomposed(), (torch.randn(N, 5, 8),)
    norms = measured(model, loss_of, batch)
    model.zero_grad()
    assert (float(norms.small), float(norms.large)) == pytest.approx(brute(model, loss_of, batch), rel=1e-4)


def assert_refused_from_now_on(source, measured_step):
    with pytest.raises(Unsupported, match="is not the sum"):
        measured_step()
    with pytest.raises(Unsupported, match="is not the sum"):
        source.arm(N)


LATER = {
    "a penalty": lambda model, x: model[0].weight.square().sum(),
    "a weight used elsewhere": lambda model, x: F.linear(x, model[0].weight).square().mean(),
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("prepare", [lambda model: model, zeroed], ids=["None", "zero"])
def test_what_a_loss_adds_from_some_step_on_is_noticed_before_long(later, prepare):
    torch.manual_seed(4)
    model, batch = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), (torch.randn(N, 8),)
    source = InStep(model)
    source.arm(N)
    loss_of(model, batch).backward()
    assert source.norms() is not None

    def later_steps():
        for _ in range(4):
            prepare(model)
            model.zero_grad()
            source.arm(N)
            (loss_of(model, batch) + LATER[later](model, batch[0])).backward()
            source.norms()

    assert_refused_from_now_on(source, later_steps)


def test_a_block_that_begins_at_zero_is_compared_once_it_counts():
    torch.manual_seed(5)
    model, batch = nn.Sequential(Borrowing(nn.Linear(8, 8)), nn.Linear(3, 3)), (torch.randn(N, 8),)
    model[0].layer.requires_grad_(False)
    model[0].first.register_forward_hook(lambda layer, inputs, output: 2 * output)
    source = InStep(model)

    def step(gate):
        model.zero_grad()
        source.arm(N)
        (gate * model[0](batch[0]) + model[1](batch[0][:, :3])).square().sum(1).mean().backward()
        return source.norms()

    assert math.isfinite(step(0.0).small)
    assert_refused_from_now_on(source, lambda: step(1.0))


def test_a_table_as_long_as_a_later_batch_is_not_taken_for_its_examples():
    torch.manual_seed(6)
    model, table = nn.Sequential(Beside(), nn.Linear(8, 3)), torch.randn(2 * N, 8)

    def loss(model, batch):
        return model[1](model[0](batch[0], table)).tanh().square().mean()

    source = InStep(model)
    source.arm(N)
    loss(model, (torch.randn(N, 2 * N, 8),)).backward()
    assert source.norms().large_size == N
    model.zero_grad()
    source.arm(2 * N)
    loss(model, (torch.randn(2 * N, 2 * N, 8),)).backward()
    assert_refused_from_now_on(source, source.norms)


def test_a_layer_that_is_not_used_is_no_fault_where_gradients_are_set_to_zero():
    model, batch = nn.ModuleDict({"used": nn.Linear(8, 3), "unused": nn.Linear(8, 3)}), (torch.randn(N, 8),)
    norms = measured(zeroed(model), lambda model, batch: loss_of(model["used"], batch), batch)
    model.zero_grad()
    assert float(norms.small) == pytest.approx(brute(model["used"], loss_of, batch)[0], rel=1e-4)


@pytest.mark.parametrize("prepare", [lambda model: model, zeroed], ids=["None", "zero"])
def test_gradients_taken_beside_the_step_do_not_count(prepare):
    torch.manual_seed(3)
    model, batch = prepare(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))), (torch.randn(N, 8),)
    source = InStep(model)
    source.arm(N)
    for _ in range(2):
        torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        loss_of(model, batch).backward()
    norms = source.norms()
    source.disarm()
    model.zero_grad()
    small, large = brute(model, loss_of, batch)
    assert norms.large_size == 2 * N
    assert (float(norms.small), float(norms.large)) == pytest.approx((4 * small, 4 * large), rel=1e-4)
