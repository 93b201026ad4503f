"""The largest learning rate that a grown batch is given."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.hyperparameters.scaler import HyperparameterScaler
from adaptbs.hyperparameters.step_hook import StepHook
from adaptbs.types import Scale


def sgd(lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr)


def used(ours: HyperparameterScaler, optimizer: torch.optim.Optimizer, longest: float = 2.0) -> float:
    """The learning rate of a step at eight times the batch."""
    ours.scale(optimizer.param_groups, {"lr"}, k=8.0, lr_factor=8.0, longest=longest)
    lr = optimizer.param_groups[0]["lr"]
    ours.restore()
    return lr


def scaler_of(optimizer: torch.optim.Optimizer) -> HyperparameterScaler:
    return HyperparameterScaler(optimizer, traits_of(optimizer))


def test_it_is_twice_the_largest_so_far():
    optimizer = sgd()
    ours, rates = scaler_of(optimizer), []
    for lr in (0.1, 0.4, 0.2, 0.1, 0.05):
        optimizer.param_groups[0]["lr"] = lr
        rates.append(used(ours, optimizer))
    assert rates == pytest.approx([0.2, 0.8, 0.8, 0.8, 0.4]), "eight times as much, once there is room for it"
    assert used(ours, optimizer, longest=float("inf")) == pytest.approx(0.4)


def test_a_base_rate_above_it_stays():
    optimizer = sgd()
    ours = scaler_of(optimizer)
    assert used(ours, optimizer, longest=0.5) == 0.1


def test_it_is_twice_that_of_now_while_the_schedule_rises():
    optimizer = sgd()
    ours, scheduler, rates, used_rates = scaler_of(optimizer), OneCycleLR(optimizer, 0.1, total_steps=20), [], []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        used_rates.append(used(ours, optimizer))
        optimizer.step()
        scheduler.step()
    assert used_rates == pytest.approx([min(8 * lr, 2 * max(rates[: i + 1])) for i, lr in enumerate(rates)])


def test_steps_at_the_base_batch_count_for_the_largest():
    """A batch that first grows once the schedule has come down may have twice its peak, not twice of what is left."""
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer, scale = torch.optim.SGD([parameter], 0.4), Scale(1.0, 1.0, 2.0)
    rates = []
    StepHook(optimizer, lambda: scale)
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    optimizer.step()
    scale = Scale(16.0, 16.0, 2.0)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert rates == pytest.approx([0.4, 0.8])


def test_a_learning_rate_that_is_a_tensor_is_not_read():
    optimizer = sgd()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    assert used(scaler_of(optimizer), optimizer).item() == pytest.approx(0.8)


def test_the_largest_is_kept_with_the_run_and_forgotten_by_the_next():
    optimizer = sgd(0.4)
    ours, resumed = scaler_of(optimizer), scaler_of(optimizer)
    used(ours, optimizer)
    resumed.load_state_dict(ours.state_dict())
    optimizer.param_groups[0]["lr"] = 0.1
    assert used(resumed, optimizer) == pytest.approx(0.8)
    resumed.release()
    assert used(resumed, optimizer) == pytest.approx(0.2)


def test_several_groups_have_one_factor():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01}])
    scaler_of(optimizer).scale(optimizer.param_groups, {"lr"}, k=8.0, lr_factor=8.0, longest=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
