import logging

import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.hyperparameters.scaler import HyperparameterScaler
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS

ROOT = 2**0.5  # the fourth root of k = 4, to which beta1 is raised


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


def changed(ours: HyperparameterScaler, groups, following, *, k: float, lr_factor: float) -> list[dict]:
    """What each group has in the step that differs from what it has outside, where all is what it was."""
    before = [dict(group) for group in groups]
    ours.scale(groups, following, k=k, lr_factor=lr_factor)
    inside = [dict(group) for group in groups]
    ours.restore()
    for group, found in zip(groups, before, strict=True):
        assert group.keys() == found.keys() and all(group[name] is found[name] for name in found)
    return [
        {name: value for name, value in new.items() if value is not old[name]}
        for new, old in zip(inside, before, strict=True)
    ]


def test_each_group_has_its_own():
    optimizer = two_groups()
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    first, second = changed(ours, optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0)
    assert first.keys() == {"lr", "betas", "eps"} and second.keys() == {"lr", "betas", "eps", "weight_decay"}
    assert (first["lr"], first["eps"], first["betas"]) == (2.0, 4.0, pytest.approx((0.5**ROOT, 0.9**4)))
    assert (second["lr"], second["weight_decay"], second["betas"]) == (4.0, 0.4, pytest.approx((0.0, 0.8**4)))


def test_a_group_that_lacks_a_hyperparameter_gets_none():
    optimizer = two_groups()
    groups = [{"lr": 1.0, "betas": (0.5, 0.9)}, {"betas": (0.5, 0.9), "eps": 8.0}]
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    new = changed(ours, groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0)
    assert [set(values) for values in new] == [{"lr", "betas"}, {"betas", "eps"}]


def test_steps_are_counted_from_the_first_change_and_for_each_group_apart():
    optimizer = two_groups()
    for _ in range(3):
        step(optimizer, 1)  # the first group is frozen
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    assert ours.idle
    changed(ours, optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0)
    assert not ours.idle
    step(optimizer, 0, 1)
    ours.count_steps()
    # t, the sums of the powers of beta1 and beta2, the powers of the latest step
    first, second = ours.state_dict()["accumulated"]
    assert first == [1, pytest.approx(ROOT), 4.0, pytest.approx(ROOT), 4.0, False]
    assert second == [4, pytest.approx(3 + ROOT), 7.0, pytest.approx(ROOT), 4.0, False]


def test_each_average_is_corrected_by_the_powers_of_its_own_beta():
    """A step at k = 1, one at 16: beta1 = 1/4 to the powers 1 and 2, beta2 = 3/4 to 1 and 16."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=1.0, betas=(0.25, 0.75), eps=8.0)
    step(optimizer, 0)
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    (new,) = changed(ours, optimizer.param_groups, ["betas"], k=16.0, lr_factor=1.0)
    c1 = (1 - 1 / 16**2) / (1 - 1 / 4**3)
    c2 = (1 - 0.75**32) / (1 - 0.75**17)
    assert new["betas"] == (1 / 16, 0.75**16)
    assert (new["lr"], new["eps"]) == pytest.approx((c1 / c2**0.5, 8 / c2**0.5))


@pytest.mark.parametrize("following", [["lr"], ["lr", "weight_decay", "eps"]])
def test_nothing_is_counted_while_the_betas_stay(following):
    optimizer = two_groups()
    ours = HyperparameterScaler(optimizer, traits_of(optimizer))
    changed(ours, optimizer.param_groups, following, k=4.0, lr_factor=2.0)
    assert ours.idle


def test_it_stays_with_the_optimizer():
    optimizer = two_groups()
    one = HyperparameterScaler.beside(optimizer, traits_of)
    assert HyperparameterScaler.beside(optimizer, traits_of) is one
    assert HyperparameterScaler.beside(two_groups(), traits_of) is not one
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


class Novel(torch.optim.Optimizer):
    pass


def novel() -> torch.optim.Optimizer:
    return Novel([nn.Parameter(torch.ones(1))], {"lr": 1.0, "betas": (0.5, 0.9), "eps": 8.0, "weight_decay": 0.1})


def test_held_it_changes_nothing_and_warns_once_for_an_optimizer(caplog):
    optimizer = novel()
    with caplog.at_level(logging.WARNING, "adaptbs"):
        for _ in range(2):
            ours = HyperparameterScaler.beside(optimizer, traits_of)
            assert not ours.known
            ours.hold(logging.getLogger("adaptbs").warning)
            found = dict(optimizer.param_groups[0])
            ours.scale(optimizer.param_groups, HYPERPARAMETERS, k=4.0, lr_factor=2.0)
            assert optimizer.param_groups[0] == found
    assert caplog.text.count("optimizer Novel is not known, so batch and hyperparameters are held") == 1
    assert "transfer=('lr',)" in caplog.text


def test_of_an_unknown_optimizer_that_follows_which_the_user_names():
    def at_4(*following: str) -> dict:
        ours = HyperparameterScaler.beside(novel(), traits_of)
        return changed(ours, novel().param_groups, following, k=4.0, lr_factor=2.0 if "lr" in following else 1.0)[0]

    assert at_4("lr") == {"lr": 2.0}
    assert at_4("betas") == {"betas": pytest.approx((0.5**ROOT, 0.9**4))}
    assert at_4("lr", "eps") == {"lr": 2.0, "eps": 4.0}
