import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.lookup import traits_of
from adaptbs.hyperparameters.traits import ADAM, LR_ONLY, RMSPROP, UNKNOWN
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS, Factors, changed_group, factors, powers
from adaptbs.hyperparameters.transfer import following as following_names

OPTIM = torch.optim


def at_16(optimizer: torch.optim.Optimizer, lr_factor: float = 4.0, following=HYPERPARAMETERS) -> dict:
    """What changes in the first group at 16 times the base batch."""
    traits, group = traits_of(optimizer), optimizer.param_groups[0]
    decoupled = group.get("decoupled_weight_decay", traits.decoupled)
    return changed_group(group, factors(traits, following, k=16, lr_factor=lr_factor, decoupled=decoupled))


def built(name: str, **hypers) -> torch.optim.Optimizer:
    return getattr(OPTIM, name)([nn.Parameter(torch.ones(2, 2))], **hypers)


ADAMS = {"lr": 4.0, "betas": (0.9**2, 0.99**16), "eps": 0.5}


@pytest.mark.parametrize(
    ("name", "extra", "becomes"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, {"lr": 16.0}),
        ("ASGD", {"weight_decay": 0.1}, {"lr": 16.0}),
        ("Adam", {"weight_decay": 0.1}, ADAMS),
        ("Adam", {"weight_decay": 0.1, "amsgrad": True}, ADAMS),
        ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, {**ADAMS, "weight_decay": 0.4}),
        ("AdamW", {"weight_decay": 0.1}, {**ADAMS, "weight_decay": 0.4}),
        ("NAdam", {"weight_decay": 0.1}, ADAMS),
        ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, {**ADAMS, "weight_decay": 0.4}),
        ("RAdam", {"weight_decay": 0.1}, {**ADAMS, "betas": (0.9**2, 0.99)}),
        ("Adamax", {"weight_decay": 0.1}, ADAMS),
        ("RMSprop", {"momentum": 0.9, "alpha": 0.99, "weight_decay": 0.1}, {"lr": 4.0, "alpha": 0.99**16, "eps": 0.5}),
        ("Adagrad", {"weight_decay": 0.1}, {"lr": 4.0}),
        ("Adadelta", {"weight_decay": 0.1}, {"lr": 4.0}),
        ("Adafactor", {"weight_decay": 0.1}, {"lr": 4.0, "weight_decay": 0.4}),
        ("SparseAdam", {}, {"lr": 4.0}),
        ("Rprop", {}, {"lr": 4.0}),
    ],
)
def test_what_becomes_of_each_at_16_times_the_batch(name, extra, becomes):
    if missing := extra.keys() - inspect.signature(getattr(OPTIM, name)).parameters.keys():
        pytest.skip(f"this torch's {name} has no {', '.join(missing)}")
    adams = {"betas": (0.9, 0.99), "eps": 2.0} if "betas" in becomes else {}
    eps = {"eps": 2.0} if name == "RMSprop" else {}
    optimizer = built(name, lr=1.0, **adams, **eps, **extra)
    new = at_16(optimizer, lr_factor=16.0 if name in ("SGD", "ASGD") else 4.0)
    assert new.keys() == becomes.keys()
    for key, value in becomes.items():
        assert new[key] == pytest.approx(value, rel=1e-12)


@pytest.mark.skipif(not hasattr(OPTIM, "Muon"), reason="this torch has no Muon")
def test_muons_weight_decay_is_decoupled_and_its_momentum_follows_as_beta1_does():
    muon = built("Muon", lr=1.0, weight_decay=0.1, momentum=0.95)
    assert at_16(muon) == pytest.approx({"lr": 4.0, "weight_decay": 0.4, "momentum": 0.95**2})


@pytest.mark.parametrize(("k", "first", "second"), [(1, 1, 1), (16, 2, 16), (81, 3, 81), (0.0625, 0.5, 0.0625)])
def test_beta1_is_raised_to_the_fourth_root_of_k_and_beta2_to_k(k, first, second):
    assert powers(k) == (first, second)


def test_what_adam_bears_of_curvature_falls_by_k_to_three_quarters_a_quarter_of_the_way_between_both_extremes():
    """2 (1 + beta1)/((1 - beta1) lr): with beta1 left alone it falls by sqrt(k), at beta1^k by about k sqrt(k)."""

    def falls_by(power: float, k: float = 16.0, beta1: float = 0.999) -> float:
        def borne(beta1: float, lr: float) -> float:
            return 2 * (1 + beta1) / ((1 - beta1) * lr)

        return borne(beta1, 1.0) / borne(beta1**power, k**0.5)

    alone, ours, as_far_in_samples = falls_by(1), falls_by(powers(16)[0]), falls_by(16)
    assert (alone, ours, as_far_in_samples) == pytest.approx((4, 8, 64), rel=1e-3)
    assert ours == pytest.approx(alone * (as_far_in_samples / alone) ** 0.25, rel=1e-3)


def test_at_the_base_batch_nothing_changes():
    by = factors(ADAM, HYPERPARAMETERS, k=1.0, lr_factor=1.0, decoupled=True)
    assert by == Factors(1.0, 1.0, 1.0, 1.0, 1.0)
    assert changed_group(built("AdamW").param_groups[0], by) == {}


@pytest.mark.parametrize(
    ("following", "lr_factor", "becomes"),
    [
        (["lr"], 4.0, {"lr": 4.0}),
        (["betas"], 1.0, {"betas": (0.9**2, 0.99**16)}),
        (["eps"], 1.0, {"eps": 0.5}),
        (["weight_decay"], 1.0, {"weight_decay": 1.6}),  # the learning rate stays, so k rests on wd alone
        (["lr", "weight_decay"], 8.0, {"lr": 8.0, "weight_decay": 0.2}),
        (["lr", "weight_decay"], 16.0, {"lr": 16.0}),
        ([], 1.0, {}),
    ],
)
def test_each_can_be_left_where_it_is(following, lr_factor, becomes):
    optimizer = built("AdamW", lr=1.0, betas=(0.9, 0.99), eps=2.0, weight_decay=0.1)
    new = at_16(optimizer, lr_factor, following)
    assert new.keys() == becomes.keys()
    for key, value in becomes.items():
        assert new[key] == pytest.approx(value, rel=1e-12)


def test_decoupled_weight_decay_does_not_notice_the_bias_correction():
    for following, lr_wd in ((HYPERPARAMETERS, 16), (["lr", "betas"], 4)):
        by = factors(ADAM, following, k=16, lr_factor=4, decoupled=True, corrected=(0.7, 1.3))
        assert by.lr == pytest.approx(4 * 0.7)
        assert by.lr * by.weight_decay == pytest.approx(lr_wd)
    assert by.eps == 1.3, "what the correction asks of eps does not depend on whether eps follows the batch"


def test_an_average_that_is_off_stays_off():
    new = changed_group({"lr": 1.0, "betas": (0.0, 0.9)}, factors(ADAM, ["betas"], k=16, lr_factor=1, decoupled=False))
    assert new["betas"] == (0.0, 0.9**16)
    by = factors(RMSPROP, ["betas"], k=16, lr_factor=1, decoupled=False)
    assert changed_group({"sqr_mom": 0.0, "mom": 0.9}, by) == {"sqr_mom": 0.0}


def test_fastais_names_mean_the_same():
    by = factors(ADAM, HYPERPARAMETERS, k=16, lr_factor=4, decoupled=True)
    new = changed_group({"lr": 1.0, "mom": 0.9, "sqr_mom": 0.99, "eps": 2.0, "wd": 0.1, "beta": 0.3}, by)
    assert new == pytest.approx({"lr": 4.0, "mom": 0.9**2, "sqr_mom": 0.99**16, "eps": 0.5, "wd": 0.4})


def test_a_number_of_numpys_is_one():
    new = changed_group({"eps": np.float32(2)}, factors(ADAM, HYPERPARAMETERS, k=16, lr_factor=4, decoupled=False))
    assert new["eps"] == pytest.approx(0.5)


def test_tensors_become_new_tensors():
    group = {"lr": torch.tensor(1.0), "betas": (torch.tensor(0.9), torch.tensor(0.99)), "eps": torch.tensor(2.0)}
    new = changed_group(group, factors(ADAM, HYPERPARAMETERS, k=16, lr_factor=4, decoupled=False))
    assert new["lr"].item() == 4 and group["lr"].item() == 1
    assert [beta.item() for beta in new["betas"]] == pytest.approx([0.9**2, 0.99**16])
    assert new["eps"].item() == 0.5


def test_an_optimizer_made_from_a_known_one_is_of_its_kind():
    class Clipped(OPTIM.AdamW):
        pass

    class Adam(OPTIM.Optimizer):  # somebody else's
        pass

    weight = nn.Parameter(torch.ones(1))
    assert traits_of(Clipped([weight])) == traits_of(OPTIM.AdamW([weight])) != ADAM
    assert traits_of(Adam([weight], {})) == UNKNOWN
    assert traits_of(OPTIM.SGD([weight], lr=1.0)) == replace(LR_ONLY, adaptive=False)


@pytest.mark.parametrize(
    ("transfer", "lr_scaling", "following"),
    [
        (None, "auto", HYPERPARAMETERS),
        (None, "sqrt", ["lr"]),
        (None, "none", ["lr"]),
        (None, lambda k, _: k, ["lr"]),
        (["lr", "eps"], "linear", ["lr", "eps"]),
        ((), "auto", []),
        ({"betas"}, "none", ["betas"]),
    ],
)
def test_which_follow(transfer, lr_scaling, following):
    assert following_names(transfer, lr_scaling) == set(following)


@pytest.mark.parametrize(
    ("transfer", "lr_scaling", "error", "message"),
    [
        (["lr", "momentum"], "auto", ValueError, "'momentum' is not one of 'lr', 'betas', 'eps', 'weight_decay'"),
        ("lr", "auto", TypeError, "transfer='lr': it must be a collection of names"),
        (3, "auto", TypeError, "transfer=3: it must be a collection"),
        (["betas"], "linear", ValueError, "lr_scaling='linear' changes it: add 'lr'"),
    ],
)
def test_what_cannot_be_asked_for(transfer, lr_scaling, error, message):
    with pytest.raises(error, match=message):
        following_names(transfer, lr_scaling)
