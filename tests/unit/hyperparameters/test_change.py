"""A change that is computed once and corrected at every step is what computing it at every step gives."""

from dataclasses import replace

import pytest
import torch

from adaptbs.hyperparameters.change import Change, changed, is_constant
from adaptbs.hyperparameters.traits import ADAM, LR_ONLY
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS, powers

GROUPS = [
    {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    {"lr": 0.1, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.1},
    {"lr": 0.1, "betas": (0.9, 0.999), "eps": None, "weight_decay": 0.0, "decoupled_weight_decay": True},
]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("traits", [ADAM, replace(ADAM, decoupled=True), replace(ADAM, compiled=True), LR_ONLY])
@pytest.mark.parametrize("following", [frozenset(HYPERPARAMETERS), frozenset({"lr"}), frozenset({"lr", "betas"})])
def test_it_is_what_the_whole_computation_gives(group, traits, following):
    k, lr_factor = 4.0, 2.0
    raised = powers(k if "betas" in following else 1.0)
    change = Change(traits, following, group, k=k, raised=raised)
    for corrected in ((1.0, 1.0), (0.7, 1.3), (1.2, 0.9)):
        by_lr, values = change.at(group, lr_factor, *corrected)
        wanted_lr, wanted = changed(traits, following, group, k, lr_factor, raised, corrected)
        assert by_lr == wanted_lr
        assert {**group, **values} == {**group, **wanted}


def test_a_tensor_may_be_changed_in_place():
    assert is_constant((0.1, (0.9, 0.999), None, True))
    assert not is_constant((0.1, (0.9, torch.tensor(0.999))))
    assert not is_constant((torch.tensor(0.1),))
