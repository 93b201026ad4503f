"""Optimizers of others, known by what they hold and do: which are, as what, and that nothing notices."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.lookup import traits_by_group, traits_of
from adaptbs.hyperparameters.step_hook import StepHook
from adaptbs.hyperparameters.traits import ADAM, LR_ONLY, MUON, UNKNOWN, OptimizerTraits
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS
from adaptbs.types import Scale
from tests.own_optimizers import LayoutOf8Bits, LayoutOfTensorLR, OwnAdamW, OwnLion

ADAMW = {"first", "second", "eps", "debiases_first", "debiases_second", "decoupled", "adaptive"}
L2 = ADAMW - {"decoupled"}
NO_BIAS = ADAMW - {"debiases_first", "debiases_second"}  # never corrected, or never biased
LION = {"first", "second", "decoupled", "adaptive"}
MUONS = {"first", "decoupled", "adaptive"}
FREE = ADAMW - {"first", "debiases_first"}

ROOT = 2**0.5  # the fourth root of k = 4, to which beta1 is raised

# (package, class, arguments, traits); the packages without a name of their own are torch's or this test's.
KNOWN: list[tuple[Any, str, dict[str, Any], set[str]]] = [
    ("lion_pytorch", "Lion", {}, LION),
    ("lion_pytorch", "Lion", {"decoupled_weight_decay": True, "weight_decay": 0.1}, LION),
    ("prodigyopt", "Prodigy", {}, NO_BIAS),
    ("prodigyopt", "Prodigy", {"decouple": False}, NO_BIAS - {"decoupled"}),
    ("schedulefree", "AdamWScheduleFree", {}, FREE),
    ("schedulefree", "AdamWScheduleFree", {"warmup_steps": 50, "weight_decay": 0.1}, FREE),
    ("optimi", "AdamW", {}, NO_BIAS),
    ("optimi", "Adam", {}, NO_BIAS - {"decoupled"}),
    ("optimi", "StableAdamW", {}, NO_BIAS),
    ("optimi", "Lion", {}, LION),
    ("optimi", "SGD", {"momentum": 0.9}, set()),
    ("muon", "SingleDeviceMuon", {}, MUONS),
    ("pytorch_optimizer", "Lion", {}, LION),
    ("pytorch_optimizer", "SOAP", {}, ADAMW),
    ("pytorch_optimizer", "Prodigy", {}, NO_BIAS),
    ("pytorch_optimizer", "ScheduleFreeAdamW", {}, FREE),
    ("pytorch_optimizer", "StableAdamW", {}, NO_BIAS),
    ("pytorch_optimizer", "Grams", {}, ADAMW),
    ("pytorch_optimizer", "SignSGD", {}, MUONS),
    ("pytorch_optimizer", "SGDW", {"momentum": 0.9}, set()),
    ("bitsandbytes.optim", "AdamW8bit", {}, ADAMW),
    ("bitsandbytes.optim", "PagedAdamW8bit", {}, ADAMW),
    ("bitsandbytes.optim", "Lion8bit", {}, LION),
    ("torchao.optim", "AdamW8bit", {}, ADAMW),
    ("torchao.optim", "Adam8bit", {}, L2),
    ("tests.own_optimizers", "OwnAdamW", {}, ADAMW),
    ("tests.own_optimizers", "OwnAdamW", {"weight_decay": 0.0}, ADAMW),
    ("tests.own_optimizers", "OwnLion", {}, LION),
    ("tests.own_optimizers", "LayoutOf8Bits", {}, ADAMW),
    ("tests.own_optimizers", "LayoutOfTensorLR", {}, L2),
]
HELD: list[tuple[str, str]] = [
    ("prodigyopt", "Prodigy"),  # with its bias correction, which is part of its learning rate
    ("schedulefree", "SGDScheduleFree"),
    ("schedulefree", "RAdamScheduleFree"),
    ("optimi", "Adan"),
    ("optimi", "RAdam"),
    ("optimi", "Ranger"),
    ("pytorch_optimizer", "AdaBelief"),
    ("pytorch_optimizer", "AdaMax"),
    ("pytorch_optimizer", "Adan"),
    ("pytorch_optimizer", "ADOPT"),
    ("pytorch_optimizer", "AdEMAMix"),
    ("pytorch_optimizer", "CAME"),
    ("pytorch_optimizer", "DiffGrad"),
    ("pytorch_optimizer", "LaProp"),
    ("pytorch_optimizer", "MARS"),
    ("pytorch_optimizer", "NovoGrad"),
    ("pytorch_optimizer", "PAdam"),
    ("pytorch_optimizer", "Ranger"),
    ("pytorch_optimizer", "Shampoo"),
    ("pytorch_optimizer", "Yogi"),
    ("bitsandbytes.optim", "AdEMAMix"),
    ("bitsandbytes.optim", "LAMB"),
    ("torch.optim", "LBFGS"),
    ("tests.own_optimizers", "AveragesByProduct"),
    ("tests.own_optimizers", "InstanceCounts"),
    ("tests.own_optimizers", "NeedsClosure"),
    ("tests.own_optimizers", "ThreeBetas"),
    ("tests.own_optimizers", "Warmed"),
]


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(16, 8, generator=generator))]


def made(package: str, name: str, **arguments: Any) -> Any:
    module = import_module(package) if package.startswith(("torch.", "tests.")) else pytest.importorskip(package)
    return getattr(module, name)(weights(), **arguments)


def said(traits: OptimizerTraits) -> set[str]:
    return {name for name in ADAMW if getattr(traits, name)}


@pytest.mark.parametrize(("package", "name", "arguments", "traits"), KNOWN, ids=lambda value: str(value)[:30])
def test_which_are_known_and_as_what(package, name, arguments, traits):
    optimizer = made(package, name, lr=1e-3, **arguments)
    found = traits_of(optimizer)
    assert found.known
    assert said(found) == traits


@pytest.mark.parametrize(("package", "name"), HELD)
def test_which_are_not_and_so_are_held(package, name):
    arguments = {"use_bias_correction": True} if name == "Prodigy" else {}
    assert traits_of(made(package, name, lr=1e-3, **arguments)) == UNKNOWN


@pytest.mark.parametrize("package", ["muon", "pytorch_optimizer"])
def test_groups_that_are_stepped_by_different_rules_are_known_apart(package):
    module = pytest.importorskip(package)
    kind = module.SingleDeviceMuonWithAuxAdam if package == "muon" else module.Muon
    one, other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
    optimizer = kind([{"params": [one], "use_muon": True}, {"params": [other], "use_muon": False}])
    muon, adam = traits_by_group(optimizer)
    assert (said(muon), said(adam)) == (MUONS, ADAMW)
    whole = traits_of(optimizer)
    assert whole.known and whole.adaptive

    inside: list[Any] = []
    StepHook(optimizer, lambda: Scale(4.0, 2.0), HYPERPARAMETERS)
    optimizer.register_step_pre_hook(lambda *_: inside.extend(dict(group) for group in optimizer.param_groups))
    found = [dict(group) for group in optimizer.param_groups]
    for p in (one, other):
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert inside[0]["momentum"] == pytest.approx(found[0]["momentum"] ** ROOT)
    assert inside[1]["betas"] == pytest.approx((found[1]["betas"][0] ** ROOT, found[1]["betas"][1] ** 4))
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in found]


def test_schedulers_and_steps_that_have_been_made_hide_nothing():
    optimizer = OwnLion(weights(), lr=1e-3)
    fresh = traits_of(optimizer)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=9, cycle_momentum=True)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert traits_of(optimizer) == fresh != UNKNOWN


def test_named_parameters_and_a_model_without_memory_hide_nothing():
    with torch.device("meta"):
        model = nn.Linear(8, 4)
    assert said(traits_of(OwnLion(model.named_parameters(), lr=1e-3))) == LION


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_users_default_type_and_device_hide_nothing(dtype):
    optimizer, before = OwnLion(weights(), lr=1e-3), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert said(traits_of(optimizer)) == LION
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["OwnAdamW", "OwnLion", "NeedsClosure", "Draws"])
def test_the_trial_leaves_no_trace(name):
    optimizer = made("tests.own_optimizers", name, lr=1e-3)
    (weight,) = optimizer.param_groups[0]["params"]
    before, attributes, group = weight.clone(), set(vars(optimizer)), dict(optimizer.param_groups[0])
    rng = torch.get_rng_state()
    traits_of(optimizer)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(weight, before) and weight.grad is None and not optimizer.state
    assert set(vars(optimizer)) == attributes and optimizer.param_groups[0] == group


def test_torchs_own_are_looked_up_and_not_tried(monkeypatch):
    monkeypatch.setattr("adaptbs.hyperparameters.lookup.recognise", lambda *_: pytest.fail("tried"))
    assert traits_of(torch.optim.Adam(weights())) == ADAM
    assert traits_of(torch.optim.SGD(weights())).adaptive is False
    if hasattr(torch.optim, "Muon"):
        assert traits_of(torch.optim.Muon(weights())) == MUON
    assert said(LR_ONLY) == {"adaptive"}


class Wrapper(torch.optim.Optimizer):
    """Hands its steps on, as trainers' wrappers do."""

    def __init__(self, base: Any, **numbers: Any) -> None:
        self.base, self.defaults, self.state, self.scaled = base, base.defaults, base.state, False
        vars(self).update(numbers)

    @property
    def param_groups(self) -> Any:
        return self.base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_a_wrapper_is_what_it_wraps_unless_it_has_a_number_of_its_own():
    inner = OwnLion(weights(), lr=1e-3)
    assert traits_of(Wrapper(inner)) == traits_of(inner) != UNKNOWN
    assert traits_of(Wrapper(torch.optim.AdamW(weights()))) == traits_of(torch.optim.AdamW(weights()))
    assert traits_of(Wrapper(inner, k=5)) == UNKNOWN, "it may do something at every fifth step"


def moved(optimizer: Any, k: float, steps: int) -> list[float]:
    """Lengths of the steps of a constant gradient, the last of them at k times the base batch."""
    (weight,) = optimizer.param_groups[0]["params"]
    now, lengths = 1.0, []
    StepHook(optimizer, lambda: Scale(now), frozenset({"betas"}))
    for step in range(steps):
        now = k if step == steps - 1 else 1.0
        before, weight.grad = weight.detach().clone(), torch.ones_like(weight)
        optimizer.step()
        lengths.append(float((weight.detach() - before).norm()))
    return lengths


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("optimi", "AdamW"), ("optimi", "StableAdamW"), ("pytorch_optimizer", "Grams"),
        ("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW8bit"),
        ("tests.own_optimizers", "OwnAdamW"), ("tests.own_optimizers", "LayoutOf8Bits"),
        ("tests.own_optimizers", "LayoutOfTensorLR"),
    ],
)  # fmt: skip
def test_growing_eightfold_the_step_of_a_constant_gradient_does_not_jump(package, name):
    *_, before, after = moved(made(package, name, lr=1e-3, weight_decay=0.0), 8.0, 100)
    assert after / before == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("package", "name", "becomes"),
    [
        ("lion_pytorch", "Lion", {"betas": (ROOT, 4), "lr": 2, "weight_decay": 2}),
        ("pytorch_optimizer", "SOAP", {"betas": (ROOT, 4), "lr": 2, "weight_decay": 2, "eps": 0.5}),
        ("optimi", "AdamW", {"beta1": ROOT, "beta2": 4, "lr": 2, "weight_decay": 2, "eps": 0.5}),
        ("schedulefree", "AdamWScheduleFree", {"betas": (1, 4), "lr": 2, "weight_decay": 2, "eps": 0.5}),
        ("muon", "SingleDeviceMuon", {"momentum": ROOT, "lr": 2, "weight_decay": 2}),
        ("tests.own_optimizers", "OwnLion", {"betas": (ROOT, 4), "lr": 2, "weight_decay": 2}),
    ],
)
def test_what_becomes_of_each_at_four_times_the_batch(package, name, becomes):
    """A decay is raised to a power, anything else multiplied; from the first step on, where no bias is wrong."""
    optimizer = made(package, name, lr=1e-3, weight_decay=0.1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    found, inside = dict(optimizer.param_groups[0]), {}
    StepHook(optimizer, lambda: Scale(4.0, 2.0), HYPERPARAMETERS)
    optimizer.register_step_pre_hook(lambda *_: inside.update(optimizer.param_groups[0]))
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    for key in ("lr", "betas", "beta1", "beta2", "momentum", "eps", "weight_decay"):
        if key not in found:
            continue
        factor = becomes.get(key, 1)
        if key == "betas":
            assert inside[key] == pytest.approx([b**p for b, p in zip(found[key], factor, strict=True)])
        elif key in ("beta1", "beta2", "momentum"):
            assert inside[key] == pytest.approx(found[key] ** factor)
        else:
            assert inside[key] == pytest.approx(found[key] * factor)
        assert optimizer.param_groups[0][key] == found[key]


@pytest.mark.parametrize(("name", "weight_decay"), [("LayoutOfTensorLR", 0.1), ("LayoutOf8Bits", 0.1)])
def test_where_the_step_is_compiled_only_the_learning_rate_changes_from_step_to_step(name, weight_decay):
    """torchao compiles its step anew for each value of any other number."""
    optimizer = made("tests.own_optimizers", name, lr=1e-3, weight_decay=weight_decay)
    assert traits_of(optimizer).compiled == (name == "LayoutOfTensorLR")
    k, grown = 1.0, []
    StepHook(optimizer, lambda: Scale(k, k**0.5), HYPERPARAMETERS)
    optimizer.register_step_pre_hook(lambda *_: grown.append(dict(optimizer.param_groups[0])) if k > 1 else None)
    (weight,) = optimizer.param_groups[0]["params"]
    for step in range(60):
        k = 1.0 if step < 20 else 4.0
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert len({float(group["lr"]) for group in grown}) > 30
    others = {(group["betas"], group["eps"], group["weight_decay"]) for group in grown}
    assert (len(others) == 1) == (name == "LayoutOfTensorLR")


def test_the_own_optimizers_are_what_their_names_say():
    """They stand for what people write, so they have to be right."""
    shared = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours, torchs = OwnAdamW(weights(), lr=1e-2), torch.optim.AdamW(weights(), **shared)
    layout = LayoutOf8Bits(weights(), lr=1e-2)
    tensor, adam = LayoutOfTensorLR(weights(), lr=1e-2), torch.optim.Adam(weights(), **shared)
    for step in range(5):
        for optimizer in (ours, torchs, layout, tensor, adam):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.full_like(p, math.cos(step))
            optimizer.step()
    (expected,), (l2,) = torchs.param_groups[0]["params"], adam.param_groups[0]["params"]
    torch.testing.assert_close(ours.param_groups[0]["params"][0], expected)
    torch.testing.assert_close(layout.param_groups[0]["params"][0], expected)
    torch.testing.assert_close(tensor.param_groups[0]["params"][0], l2)
