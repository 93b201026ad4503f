"""The largest learning rate that a grown batch is given."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from adaptbs.hyperparameters.learning_rate import LONGEST, RISE
from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.hyperparameters.scaler import HyperparameterScaler
from adaptbs.hyperparameters.step_hook import StepHook
from adaptbs.types import Scale


def sgd(lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr)


def used(ours: HyperparameterScaler, optimizer: torch.optim.Optimizer, longest: float = 2.0) -> float:
    """The learning rate of a step at eight times the batch, once it has risen."""
    return risen(ours, optimizer, 8.0, longest, steps=120)[-1]


def risen(ours, optimizer, lr_factor: float, longest: float, steps: int) -> list[float]:
    """The learning rates of so many steps with this factor."""
    rates = []
    for _ in range(steps):
        ours.scale(optimizer.param_groups, {"lr"}, k=8.0, lr_factor=lr_factor, longest=longest)
        rates.append(optimizer.param_groups[0]["lr"])
        ours.restore()
    return rates


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


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=100),
        lambda optimizer: CosineAnnealingLR(optimizer, 100),
    ],
)
def test_a_scheduler_says_its_peak_before_it_has_come_to_it(schedule):
    optimizer = sgd()
    schedule(optimizer)
    optimizer.param_groups[0]["lr"] = 0.05
    assert used(scaler_of(optimizer), optimizer) == pytest.approx(0.2)


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


def test_it_rises_gradually_and_falls_at_once():
    optimizer = sgd(1.0)
    ours = scaler_of(optimizer)
    rates = risen(ours, optimizer, 2.0, longest=2.0, steps=40)
    assert rates == pytest.approx([min(2.0, RISE ** (i + 1)) for i in range(40)])
    assert rates[34] < 2.0 == rates[35]
    assert risen(ours, optimizer, 0.5, longest=2.0, steps=1) == [0.5]
    assert risen(ours, optimizer, 1.5, longest=2.0, steps=1) == pytest.approx([RISE]), "from that of the base batch"


def test_the_factor_of_the_start_is_there_at_once_but_not_a_second_time():
    optimizer = sgd(1.0)
    ours = scaler_of(optimizer)
    assert risen(ours, optimizer, 8.0, longest=8 * LONGEST, steps=2) == pytest.approx([8.0, 8.0])
    assert risen(ours, optimizer, 2.0, longest=8 * LONGEST, steps=1) == pytest.approx([2.0])
    assert risen(ours, optimizer, 8.0, longest=8 * LONGEST, steps=1) == pytest.approx([2.0 * RISE])


def test_after_steps_at_the_base_batch_it_rises_from_there():
    """A batch may be taken back to the base batch, where nothing is scaled, and grow again."""
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer, rates = torch.optim.SGD([parameter], 1.0), []
    scales = [*[Scale(2.0, 2.0, 2.0)] * 40, Scale(1.0, 1.0, 2.0), Scale(2.0, 2.0, 2.0)]
    hook = StepHook(optimizer, lambda: scales[len(rates)])
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for _ in scales:
        optimizer.step()
    assert rates[-3:] == pytest.approx([2.0, 1.0, RISE])
    assert not hook.is_scaled


def test_a_run_that_goes_on_rises_from_where_it_was():
    optimizer = sgd(1.0)
    ours, resumed = scaler_of(optimizer), scaler_of(optimizer)
    (before,) = risen(ours, optimizer, 2.0, longest=2.0, steps=3)[-1:]
    resumed.load_state_dict(ours.state_dict())
    assert risen(resumed, optimizer, 2.0, longest=2.0, steps=1) == pytest.approx([before * RISE])


def test_several_groups_have_one_factor():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.01}])
    ours = scaler_of(optimizer)
    used(ours, optimizer)
    ours.scale(optimizer.param_groups, {"lr"}, k=8.0, lr_factor=8.0, longest=2.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
