"""Every way that torch offers to make the same step: with a batch that stays nothing changes, with one that grows the
step is made at the transferred hyperparameters, and outside of it none of them moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop

from tests.integration.training import FORCED, Numbered, adaptive, doubling, loss_of, network, stock

EPOCHS, START = 2, 16
# name: (class, arguments)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "Adam": (Adam, {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.01}),
    "AdamW": (AdamW, {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
    "RMSprop": (RMSprop, {"lr": 1e-3, "alpha": 0.99, "eps": 1e-6, "momentum": 0.9, "weight_decay": 0.01}),
}
GROUPS = {  # the first group's own
    SGD: {"lr": 0.003, "weight_decay": 0.0, "momentum": 0.8},
    Adam: {"lr": 3e-3, "weight_decay": 0.0, "betas": (0.8, 0.9)},
    AdamW: {"lr": 3e-3, "weight_decay": 0.2, "betas": (0.8, 0.9)},
    RMSprop: {"lr": 3e-4, "weight_decay": 0.0, "alpha": 0.9},
}
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "tensor lr": {"foreach": False, "lr": torch.tensor},
    "fused, tensor lr": {"fused": True, "lr": torch.tensor},
    "capturable": {"foreach": False, "capturable": True},
    "maximize": {"foreach": False, "maximize": True},
    "maximize, foreach": {"foreach": True, "maximize": True},
}


def make(kind: str, way: str, model: nn.Module):
    """The optimizer, with two groups; skips `capturable`, where torch itself refuses it on a CPU."""
    cls, arguments = KINDS[kind]
    extra = dict(WAYS[way])
    group = {**GROUPS[cls], "params": list(model[:2].parameters())}
    arguments = arguments | {name: value for name, value in extra.items() if name != "lr"}
    if "lr" in extra:
        arguments["lr"], group["lr"] = torch.tensor(arguments["lr"]), torch.tensor(group["lr"])
    optimizer = cls([group, {"params": list(model[2:].parameters())}], **arguments)
    if way == "capturable":
        step_or_skip(optimizer, model)
    return optimizer


def step_or_skip(optimizer, model: nn.Module) -> None:
    """Make the first step, or skip the test where torch makes none of this kind on this device."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    try:
        optimizer.step()
    except (AssertionError, RuntimeError) as error:
        if "capturable=True" not in str(error):  # the only thing that torch is known to refuse
            raise
        pytest.skip(f"torch: {str(error)[:80]}")
    model.load_state_dict(before)


def smooth() -> nn.Module:
    """Without the BatchNorm and ReLU of `network`: there rounding alone makes Adam's steps differ."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


class Trained:
    """A run, with what the hyperparameters were inside each step and outside of it."""

    def __init__(self, kind: str, way: str, grow: bool | None, clip: bool = False) -> None:
        data, model = Numbered(500 if grow else 200), smooth() if grow else network()
        self.optimizer = make(kind, way, model)
        maximize = bool(WAYS[way].get("maximize"))
        fixed = {"overhead": 0, "max_batch_size": START}
        self.found = [dict(group) for group in self.optimizer.param_groups]
        self.loader = stock(data)
        if grow is not None:
            arguments = {"target": doubling(), **FORCED} if grow else fixed
            self.loader = adaptive(data, model, self.optimizer, START, **arguments)
        self.inside: list[list[dict[str, Any]]] = []
        self.ks: list[float] = []
        self.optimizer.register_step_pre_hook(
            lambda *_: self.inside.append([without_params(group) for group in self.optimizer.param_groups])
        )
        torch.manual_seed(1)
        for _ in range(EPOCHS):
            for batch in self.loader:
                self.optimizer.zero_grad()
                loss = loss_of(model, batch)
                (-loss if maximize else loss).backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                self.optimizer.step()
                self.ks.append(self.loader.training_run.scale().k if grow is not None else 1.0)
                self.check_outside()
        self.weights = torch.cat([p.detach().flatten() for p in model.parameters()])

    def check_outside(self) -> None:
        """Every hyperparameter is the very object that it was before the run, and as large."""
        for group, found in zip(self.optimizer.param_groups, self.found, strict=True):
            assert group.keys() == found.keys()
            assert all(group[name] is found[name] for name in found)


LACKING = {"SGD": "capturable", "nesterov": "capturable", "RMSprop": "fused"}  # what torch does not offer at all
VARIANTS = [(kind, way) for kind in KINDS for way in WAYS if LACKING.get(kind, " ") not in way.split(",")]


@pytest.mark.parametrize(("kind", "way"), VARIANTS)
def test_at_a_constant_batch_it_is_the_stock_loop_to_the_bit(kind, way):
    fixed, ours = Trained(kind, way, None, clip=True), Trained(kind, way, False, clip=True)
    assert torch.equal(ours.weights, fixed.weights)
    assert ours.inside == fixed.inside


@pytest.fixture(scope="module")
def reference():
    """Runs that grow, each parameter by itself: what the other ways of making the same step have to come to."""
    made: dict[str, Trained] = {}

    def run(kind: str) -> Trained:
        if kind not in made:
            made[kind] = Trained(kind, "one by one", True)
        return made[kind]

    return run


@pytest.mark.parametrize(("kind", "way"), VARIANTS)
def test_through_growth_each_step_is_made_at_the_transferred_hyperparameters(kind, way, reference):
    run = Trained(kind, way, True)
    assert max(run.ks) == 16
    cls = KINDS[kind][0]
    for k, groups in zip(run.ks, run.inside, strict=True):
        for group, base in zip(groups, run.found, strict=True):
            if cls is SGD:
                assert float(group["lr"]) == pytest.approx(float(base["lr"]) * k)
                assert group["momentum"] == base["momentum"]
            if cls is RMSprop:
                assert float(group["lr"]) == pytest.approx(float(base["lr"]) * k**0.5)
                assert group["alpha"] == pytest.approx(base["alpha"] ** k)
                assert group["eps"] == pytest.approx(base["eps"] / k**0.5)
            if cls in (Adam, AdamW):
                assert group["betas"] == pytest.approx((base["betas"][0] ** k**0.25, base["betas"][1] ** k))
            if cls is AdamW:  # what a step takes off the weights, whatever the bias correction does to the rate
                taken = float(group["lr"]) * group["weight_decay"]
                assert taken == pytest.approx(float(base["lr"]) * base["weight_decay"] * k)
            else:
                assert group["weight_decay"] == base["weight_decay"]
    assert run.weights.isfinite().all()
    if "maximize" in way or way == "one by one":
        torch.testing.assert_close(run.weights, reference(kind).weights, rtol=1e-5, atol=1e-6)
    else:  # (sums are rounded in another order)
        torch.testing.assert_close(run.weights, reference(kind).weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_compiled_step_is_made_at_the_transferred_hyperparameters(kind):
    """With dynamo's own backend, which compiles nothing but sees everything that a compiler would be given."""
    results = []
    for compiled in (False, True):
        data, model = Numbered(200), network()
        optimizer = KINDS[kind][0](model.parameters(), **KINDS[kind][1])
        loader = adaptive(data, model, optimizer, target=doubling(), epochs=1, **FORCED | {"max_batch_size": 32})
        inside: list[float] = []
        optimizer.register_step_pre_hook(lambda *_, o=optimizer, i=inside: i.append(o.param_groups[0]["lr"]))
        step = torch.compile(lambda o=optimizer: o.step(), backend="eager") if compiled else optimizer.step
        base = dict(optimizer.param_groups[0])
        torch.manual_seed(1)
        for batch in loader:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            step()
            assert all(optimizer.param_groups[0][name] is base[name] for name in base)
        assert len(set(inside)) > 1, "it should have grown"
        results.append((inside, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("transfer", [None, ("lr",)])
def test_an_optimizer_with_a_closure(grow, transfer, caplog):
    """LBFGS is not known: it is held, with a warning where it could grow. Told to, its rate follows by the root."""
    results = []
    for ours in (False, True):
        data, model = Numbered(200), nn.Linear(8, 1)
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        optimizer = LBFGS(model.parameters(), lr=0.05, max_iter=2)
        loader = stock(data)
        if ours:
            arguments = {"target": doubling(2), **FORCED} if grow else {"overhead": 0, "max_batch_size": START}
            loader = adaptive(data, model, optimizer, epochs=1, transfer=transfer, **arguments)
        inside, ks = [], []
        optimizer.register_step_pre_hook(lambda *_, o=optimizer, i=inside: i.append(o.param_groups[0]["lr"]))
        torch.manual_seed(1)
        for batch in loader:

            def closure(batch=batch, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            optimizer.step(closure)
            ks.append(loader.training_run.scale().k if ours else 1)
            assert optimizer.param_groups[0]["lr"] == 0.05
        assert inside == pytest.approx([0.05 * k**0.5 for k in ks])
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results) != (grow and transfer is not None)
    assert ("optimizer LBFGS is not known" in caplog.text) == (grow and transfer is None)
    if grow:
        held = [reason == "optimizer not known" for reason in loader.history.decisions()["reason"][1:]]
        assert held and all(held) == (transfer is None)


def scaled(optimizer, model, loader, poisoned: int) -> tuple[list[float], list[bool]]:
    """The documentation's loop with a GradScaler, one batch's gradients made infinite: LRs inside, and steps taken."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inside: list[float] = []
    taken: list[bool] = []
    optimizer.register_step_pre_hook(lambda *_: inside.append(float(optimizer.param_groups[0]["lr"])))
    found = dict(optimizer.param_groups[0])
    for i, batch in enumerate(loader):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if i == poisoned:
            next(model.parameters()).grad[0] = float("inf")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = [p.clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        taken.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
        assert all(optimizer.param_groups[0][name] is found[name] for name in found)
    return inside, taken


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_step_that_a_grad_scaler_skips(kind, fused):
    weights = []
    for how in ("stock", "constant", "grown"):
        data, model = Numbered(300), network()
        optimizer = KINDS[kind][0](model.parameters(), fused=fused, **KINDS[kind][1])
        loader = stock(data)
        if how != "stock":
            grown = {"target": doubling(2), **FORCED}
            fixed = {"overhead": 0, "max_batch_size": START}
            loader = adaptive(data, model, optimizer, epochs=1, **grown if how == "grown" else fixed)
        torch.manual_seed(1)
        inside, taken = scaled(optimizer, model, loader, poisoned=4)
        assert [i for i, was in enumerate(taken) if not was] == [4]
        if how == "grown":
            assert max(inside) > 1.9 * optimizer.param_groups[0]["lr"]
            if kind == "AdamW":
                loader._session.step_hook.scaler.count_steps(wait=True)
                ((steps, *_),) = loader.state_dict()["hyperparameters"]["accumulated"]
                assert steps == len(taken) - 1, "the skipped step has put nothing into the averages"
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert weights[2].isfinite().all()
