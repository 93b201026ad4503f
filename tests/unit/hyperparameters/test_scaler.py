import logging

import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.scaler import HyperparameterScaler
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS, LR, traits_of


def two_groups() -> torch.optim.Optimizer:
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "betas": (0.5, 0.9), "weight_decay": 0.1},
        {
            "params": [nn.Parameter(torch.ones(1))], "lr": 2.0, "betas": (0.0, 0.8), "weight_decay": 0.2,
            "decoupled_weight_decay": True,
        },
    ]  # fmt: skip
    return torch.optim.Adam(groups, eps=8.0)


def step(optimizer: torch.optim.Optimizer, *groups: int) -> None:
    for i, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            parameter.grad = torch.ones(1) if i in groups else None
    optimizer.step()


def test_each_group_has_its_own():
    optimizer = two_groups()
    first, second = HyperparameterScaler(optimizer, traits_of(optimizer)).prepare_step(
        optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0
    )
    assert first.keys() == {"lr", "betas", "eps"} and second.keys() == {"lr", "betas", "eps", "weight_decay"}
    assert (first["lr"], first["eps"], first["betas"]) == (2.0, 4.0, pytest.approx((0.5**2, 0.9**4)))
    assert (second["lr"], second["weight_decay"], second["betas"]) == (4.0, 0.4, pytest.approx((0.0, 0.8**4)))


def test_a_group_that_lacks_a_hyperparameter_gets_none():
    optimizer = two_groups()
    new = HyperparameterScaler(optimizer, traits_of(optimizer)).prepare_step(
        [{"lr": 1.0, "betas": (0.5, 0.9)}, {"betas": (0.5, 0.9), "eps": 8.0}], HYPERPARAMETERS, k=4.0, lr_factor=2.0
    )
    assert [set(values) for values in new] == [{"lr", "betas"}, {"betas", "eps"}]


def test_steps_are_counted_from_the_first_change_and_for_each_group_apart():
    optimizer = two_groups()
    for _ in range(3):
        step(optimizer, 1)  # the first group is frozen
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    assert ours.idle
    ours.prepare_step(optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0)
    assert not ours.idle
    step(optimizer, 0, 1)
    ours.count_steps()
    # t, the sums of the powers of beta1 and beta2, the powers of the latest step
    assert ours.state_dict() == [[1, 2.0, 4.0, 2.0, 4.0, False], [4, 5.0, 7.0, 2.0, 4.0, False]]


def test_each_average_is_corrected_by_the_powers_of_its_own_beta():
    """A step at k = 1, one at 4: beta1 = 1/4 to the powers 1 and 2, beta2 = 1/2 to 1 and 4. Today both are 1/16."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=1.0, betas=(0.25, 0.5), eps=8.0)
    step(optimizer, 0)
    (new,) = HyperparameterScaler(optimizer, traits_of(optimizer)).prepare_step(
        optimizer.param_groups, ["betas"], k=4.0, lr_factor=1.0
    )
    c1 = (1 - 1 / 16**2) / (1 - 1 / 4**3)
    c2 = (1 - 1 / 16**2) / (1 - 1 / 2**5)
    assert new["betas"] == (1 / 16, 1 / 16)
    assert (new["lr"], new["eps"]) == pytest.approx((c1 / c2**0.5, 8 / c2**0.5))


@pytest.mark.parametrize("following", [["lr"], ["lr", "weight_decay", "eps"]])
def test_nothing_is_counted_while_the_betas_stay(following):
    optimizer = two_groups()
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    ours.prepare_step(optimizer.param_groups, following, k=4.0, lr_factor=2.0)
    assert ours.idle


def test_it_stays_with_the_optimizer():
    optimizer = two_groups()
    one = HyperparameterScaler.beside(optimizer, traits_of, HYPERPARAMETERS)
    assert HyperparameterScaler.beside(optimizer, traits_of, LR) is one
    assert HyperparameterScaler.beside(two_groups(), traits_of, LR) is not one
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


class Novel(torch.optim.Optimizer):
    pass


def test_an_unknown_optimizer_is_warned_of_once_and_only_if_more_than_the_learning_rate_was_to_follow(caplog):
    optimizer = Novel([nn.Parameter(torch.ones(1))], {"lr": 1.0, "betas": (0.5, 0.9), "eps": 8.0, "weight_decay": 0.1})
    with caplog.at_level(logging.WARNING, "adaptbs"):
        HyperparameterScaler.beside(optimizer, traits_of, LR)
        assert not caplog.records
        for _ in range(2):
            ours = HyperparameterScaler.beside(optimizer, traits_of, HYPERPARAMETERS)
    assert caplog.text.count("optimizer Novel is not known") == 1
    assert "transfer=('lr',)" in caplog.text
    assert ours.prepare_step(optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0) == [{"lr": 2.0}]
