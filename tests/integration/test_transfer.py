"""All hyperparameters following the batch, in real loops and fits."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest
import torch
from fastai.basics import SGD as FastSGD
from fastai.basics import Adam as FastAdam
from fastai.basics import Callback, Learner, OptimWrapper, RAdam, RMSProp
from fastai.optimizer import Lamb, ranger
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import body_and_head, doubling, make_learner, same, weights
from tests.integration.training import FORCED, Numbered, adaptive, network, stock, train
from tests.integration.training import doubling as doubling_now_and_then

ROOT, FOURTH = 2.0, 2.0**0.5  # the square root and the fourth root of k = 4

# (optimizer, what it has at the base batch, what it has at four times that)
TORCH = {
    "SGD": (SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}, {"lr": 0.04}),
    "Adam": (
        Adam,
        {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 1e-2 * ROOT, "betas": (0.9**FOURTH, 0.99**4), "eps": 1e-3 / ROOT},
    ),
    "AdamW": (
        AdamW,
        {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 1e-2 * ROOT, "betas": (0.9**FOURTH, 0.99**4), "eps": 1e-3 / ROOT, "weight_decay": 0.1 * ROOT},
    ),
    "NAdam": (
        NAdam,
        {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 1e-2 * ROOT, "betas": (0.9**FOURTH, 0.99**4), "eps": 1e-3 / ROOT},
    ),
    "RMSprop": (
        RMSprop,
        {"lr": 1e-3, "alpha": 0.99, "eps": 1e-3, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 1e-3 * ROOT, "alpha": 0.99**4, "eps": 1e-3 / ROOT},
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_a_run_at_four_times_the_base_batch_is_a_stock_run_with_the_hyperparameters_transferred(name: str) -> None:
    kind, base, transferred = TORCH[name]
    data = Numbered(500)

    def run(ours: bool) -> Any:
        model = network()
        optimizer = kind(model.parameters(), **(base if ours else {**base, **transferred}))
        if not ours:
            model[1].momentum = 1 - 0.9**4
        fixed = {"overhead": 0, "max_batch_size": 32, "base_batch_size": 8}
        loader = adaptive(data, model, optimizer, 32, **fixed) if ours else stock(data, 32)
        torch.manual_seed(1)
        return train(model, optimizer, loader, 2)

    ours, expected = run(True), run(False)
    assert ours.epochs == expected.epochs
    torch.testing.assert_close(ours.weights, expected.weights, rtol=1e-5, atol=1e-6)
    assert ours.lrs[0] == base["lr"]


def two_groups(model: Any, kind: type[Optimizer], **hypers: Any) -> Optimizer:
    return kind([{"params": model[:1].parameters()}, {"params": model[1:].parameters(), "lr": 2e-3}], **hypers)


@pytest.mark.parametrize("name", TORCH)
def test_the_loop_and_its_scheduler_never_see_what_is_changed(name: str) -> None:
    kind, base, _ = TORCH[name]
    data, model = Numbered(), network()
    optimizer = two_groups(model, kind, **base)
    reference = two_groups(network(), kind, **base)
    loader = adaptive(data, model, optimizer, target=doubling_now_and_then(), **FORCED)
    for batch in loader:
        optimizer.zero_grad()
        model(batch[0]).square().mean().backward()
        optimizer.step()
        for group, untouched in zip(optimizer.param_groups, reference.param_groups, strict=True):
            assert {k: v for k, v in group.items() if k != "params"} == {
                k: v for k, v in untouched.items() if k != "params"
            }
    assert loader.batch_size == 256


def test_one_cycles_momentum_is_what_it_would_have_been() -> None:
    data, model = Numbered(), network()
    optimizer = Adam(model.parameters(), 1e-3)
    steps = len(stock(data))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=2 * steps)
    outside, inside = [], []  # (hooks run in the order they were registered in)
    optimizer.register_step_pre_hook(lambda *_: outside.append(optimizer.param_groups[0]["betas"]))
    loader = adaptive(data, model, optimizer, scheduler=scheduler, target=doubling_now_and_then(), **FORCED)
    optimizer.register_step_pre_hook(lambda *_: inside.append(optimizer.param_groups[0]["betas"]))
    run = train(model, optimizer, loader, 2, scheduler)
    reference = Adam(network().parameters(), 1e-3)
    fixed = torch.optim.lr_scheduler.OneCycleLR(reference, 1e-2, total_steps=2 * steps)
    for _ in range(2 * steps):
        reference.step()
        fixed.step()
    assert optimizer.param_groups[0]["betas"] == reference.param_groups[0]["betas"]
    for used, base, size in zip(inside[:-1], outside[:-1], run.sizes[:-1], strict=True):  # (the last is short)
        k = size / 16 if size % 16 == 0 else 16
        assert used == pytest.approx((base[0] ** k**0.25, base[1] ** k))
    assert min(base[0] for base in outside) < 0.86 and run.sizes[-2] == 256


def test_what_the_averages_hold_is_remembered_through_a_file() -> None:
    data = Numbered(600)

    def parts() -> tuple[Any, ...]:
        model = network()
        optimizer = AdamW(model.parameters(), 1e-3)
        return model, optimizer, adaptive(data, model, optimizer, epochs=4, target=doubling_now_and_then(), **FORCED)

    model, optimizer, loader = parts()
    train(model, optimizer, loader, 1)
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, loader)], saved)
    rng = torch.get_rng_state()
    unbroken = train(model, optimizer, loader, 1)

    model, optimizer, resumed = others = parts()
    for part, state in zip(others, torch.load(io.BytesIO(saved.getvalue()), weights_only=True), strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng)
    again = train(model, optimizer, resumed, 1)
    assert again.used == unbroken.used
    assert torch.equal(again.weights, unbroken.weights)
    hyperparameters = resumed.state_dict()["hyperparameters"]
    assert hyperparameters == loader.state_dict()["hyperparameters"]
    ((steps, first, second, *_),) = hyperparameters["accumulated"]
    assert second > 2 * steps, "it should have grown"
    assert steps < first < second


def test_a_second_loader_goes_on_with_what_the_first_has_counted() -> None:
    data, model = Numbered(), network()
    optimizer = AdamW(model.parameters(), 1e-3)
    first = adaptive(data, model, optimizer, target=doubling_now_and_then(), **FORCED)
    train(model, optimizer, first, 1)
    first.close()
    second = adaptive(data, model, optimizer, **FORCED)
    counted = second.state_dict()["hyperparameters"]
    assert counted == first.state_dict()["hyperparameters"] and counted["accumulated"]


def test_an_optimizer_begun_anew_is_not_corrected_for_the_past() -> None:
    data, model = Numbered(), network()
    optimizer = AdamW(model.parameters(), 1e-3)
    loader = adaptive(data, model, optimizer, target=doubling_now_and_then(), **FORCED)
    train(model, optimizer, loader, 1)
    optimizer.state.clear()
    train(model, optimizer, loader, 1)
    steps, first, second, *powers, _ = loader.state_dict()["hyperparameters"]["accumulated"][0]
    assert powers == [2, 16]
    assert (first, second) == (2 * steps, 16 * steps), "all of the second epoch, nothing of the first"


# fastai.


class Used(Callback):
    """The hyperparameters inside each step, and after each batch."""

    order, run_valid = 62, False

    def before_fit(self) -> None:
        self.inside, self.sizes = [], []

    def before_batch(self) -> None:
        self.inside.append([dict(h) for h in self.opt.hypers])
        self.sizes.append(len(self.xb[0]))


FASTAI = {
    "Adam": (partial(FastAdam, wd=0.1), {"mom": FOURTH, "sqr_mom": 4, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "Adam, l2": (
        partial(FastAdam, wd=0.1, decouple_wd=False),
        {"mom": FOURTH, "sqr_mom": 4, "eps": -0.5, "wd": 0, "lr": 0.5},
    ),
    "RAdam": (partial(RAdam, wd=0.1), {"mom": FOURTH, "sqr_mom": 1, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "ranger": (ranger, {"mom": FOURTH, "sqr_mom": 1, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "Lamb": (partial(Lamb, wd=0.1), {"mom": FOURTH, "sqr_mom": 4, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "RMSProp": (partial(RMSProp, mom=0.9, wd=0.1), {"mom": 1, "sqr_mom": 4, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "SGD": (partial(FastSGD, mom=0.9, wd=0.1), {"mom": 1, "wd": 0, "lr": 1}),
    "torch AdamW": (partial(OptimWrapper, opt=AdamW), {"mom": FOURTH, "sqr_mom": 4, "eps": -0.5, "wd": 0.5, "lr": 0.5}),
    "torch Adam": (partial(OptimWrapper, opt=Adam), {"mom": FOURTH, "sqr_mom": 4, "eps": -0.5, "wd": 0, "lr": 0.5}),
    "torch RMSprop": (partial(OptimWrapper, opt=RMSprop), {"sqr_mom": 4, "eps": -0.5, "lr": 0.5}),
    "torch SGD": (partial(OptimWrapper, opt=SGD), {"mom": 1, "lr": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", FASTAI)
def test_fastais_optimizers_at_four_times_the_base_batch(name: str) -> None:
    """Of a decay the power is given that it is raised to at k = 4, else the power of k that it is multiplied by."""
    opt_func, powers = FASTAI[name]
    learn = make_learner(bs=32, opt_func=opt_func, splitter=body_and_head)
    learn.create_opt()
    if "eps" in powers:
        learn.opt.set_hyper("eps", [1e-3, 1e-2])  # groups may differ
    learn.opt.set_hyper("lr", slice(1e-4, 1e-3))
    base = [dict(h) for h in learn.opt.hypers]
    used = Used()
    learn.fit(1, slice(1e-4, 1e-3), cbs=[AdaptiveBatchSize(base_batch_size=8, max_batch_size=32, overhead=0), used])
    assert [dict(h) for h in learn.opt.hypers] == base
    for inside in used.inside:
        for new, old in zip(inside, base, strict=True):
            assert new.keys() == old.keys()
            for key, power in powers.items():
                expected = old[key] ** power if "mom" in key else old[key] * 4.0**power
                assert new[key] == pytest.approx(expected, rel=1e-9), key


@pytest.mark.parametrize("name", ["Adam", "Adam, l2", "torch AdamW", "RMSProp"])
def test_a_fit_at_four_times_the_base_batch_is_a_stock_fit_with_the_hyperparameters_transferred(name: str) -> None:
    opt_func, powers = FASTAI[name]

    def run(ours: bool) -> Learner:
        learn = make_learner(bs=32, n=403, opt_func=opt_func)
        learn.create_opt()
        if not ours:
            for key, power in powers.items():
                (old,) = {h[key] for h in learn.opt.hypers}
                decay = "mom" in key
                learn.opt.set_hyper(key, old**power if decay else old * 4.0**power)
        cbs = [AdaptiveBatchSize(base_batch_size=8, max_batch_size=32, overhead=0)] if ours else []
        learn.fit(2, 1e-2 if ours else 2e-2, cbs=cbs)
        return learn

    for ours, expected in zip(weights(run(True)), weights(run(False)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def growing(**settings: Any) -> AdaptiveBatchSize:
    return AdaptiveBatchSize(target=doubling, overhead=0, max_batch_size=80, **settings)


@pytest.mark.parametrize("opt_func", [FastAdam, partial(OptimWrapper, opt=AdamW)], ids=["Adam", "OptimWrapper"])
def test_one_cycle_in_fastai_schedules_the_momentum_that_the_user_set(opt_func: Any) -> None:
    learn, used = make_learner(n=403, opt_func=opt_func), Used()
    learn.fit_one_cycle(2, 1e-2, cbs=[growing(), used])
    final = learn.opt.hypers[0]
    assert final["mom"] == pytest.approx(0.95, abs=2e-3)
    assert used.inside[-1][0]["mom"] == pytest.approx(0.95**FOURTH, rel=1e-2)
    assert used.inside[-1][0]["sqr_mom"] == pytest.approx(final["sqr_mom"] ** 4)


def expected_counts(used: Used) -> list[Any]:
    """Steps of an epoch, and the sums of k^(1/4) and of k over them; the last batch is short, but was cut at 80."""
    ks = [size / 20 for size in (*used.sizes[:-1], 80)]
    return [len(ks), pytest.approx(sum(k**0.25 for k in ks)), sum(ks)]


@pytest.mark.parametrize("opt_func", [FastAdam, partial(OptimWrapper, opt=AdamW)], ids=["Adam", "OptimWrapper"])
def test_fastais_steps_are_counted_at_the_k_they_were_made_at(opt_func: Any) -> None:
    learn, used, callback = make_learner(n=403, opt_func=opt_func), Used(), growing()
    learn.fit(1, 1e-2, cbs=[callback, used])
    callback._hook.scaler.count_steps(wait=True)
    ((steps, first, second, *powers, _),) = callback.state_dict()["hyperparameters"]["accumulated"]
    assert [steps, first, second] == expected_counts(used)
    assert powers == pytest.approx([FOURTH, 4])


class Counted(Callback):
    """What has been counted by the first batch of a fit."""

    order, run_valid = 62, False

    def before_batch(self) -> None:
        if self.iter == 0:
            scaler = getattr(self.opt, "opt", self.opt).__dict__["_adaptbs_hyperparameters"]
            (self.groups,) = scaler.state_dict()["accumulated"]


@pytest.mark.parametrize("opt_func", [FastAdam, partial(OptimWrapper, opt=AdamW)], ids=["Adam", "OptimWrapper"])
def test_a_second_fit_knows_what_the_first_has_accumulated_also_through_a_checkpoint(opt_func: Any, tmp_path: Any):
    callback, used, counted = growing(), Used(), Counted()
    learn = make_learner(n=403, opt_func=opt_func, path=tmp_path)
    learn.fit(1, 1e-2, cbs=[callback, used])
    expected = expected_counts(used)
    learn.save("fit")
    state = io.BytesIO()
    torch.save(callback.state_dict(), state)
    learn.fit(1, 1e-2, cbs=[growing(), used, counted])  # a new callback, the same optimizer
    assert counted.groups[:3] == expected
    assert used.inside[0][0]["lr"] != 1e-2, "at the base batch again, and Adam still divides by the wrong mass"

    other, resumed, counted = make_learner(n=403, opt_func=opt_func, path=tmp_path), growing(), Counted()
    other.create_opt()
    other.load("fit")
    resumed.load_state_dict(torch.load(io.BytesIO(state.getvalue()), weights_only=True))
    other.fit(1, 1e-2, cbs=[resumed, counted])
    assert counted.groups[:3] == expected


def test_a_callback_that_is_not_adaptive_leaves_no_trace() -> None:
    learn = make_learner()
    learn.fit(1, 1e-2, cbs=AdaptiveBatchSize(overhead=0, max_batch_size=20))
    assert learn.opt.__dict__["_adaptbs_hyperparameters"].idle
    plain = make_learner()
    plain.fit(1, 1e-2)
    assert same(weights(plain), weights(learn))


def test_fastais_own_unknown_optimizer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    from fastai.optimizer import Optimizer as FastOptimizer

    def novel_step(p: Any, lr: float, **_: Any) -> None:
        p.data.add_(p.grad.data.sign(), alpha=-lr)

    learn, used = make_learner(opt_func=lambda params, lr, **_: FastOptimizer(params, [novel_step], lr=lr)), Used()
    for _ in range(2):
        learn.fit(1, 1e-3, cbs=[growing(), used])
        assert set(used.sizes[:-1]) == {20}
        assert {hypers["lr"] for groups in used.inside for hypers in groups} == {1e-3}
    assert caplog.text.count("optimizer Optimizer is not known") == 1
    learn.fit(1, 1e-3, cbs=[growing(transfer=("lr",)), used])
    assert max(used.sizes) == 80
    assert max(hypers["lr"] for groups in used.inside for hypers in groups) == pytest.approx(2e-3)
    assert caplog.text.count("optimizer Optimizer is not known") == 1, "it was said what follows"
