"""BatchNorm's momentum in real loops and fits: as long in samples as at the base batch, and the user's own outside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fastai.basics import Callback, CancelFitException
from fastai.callback.training import GradientAccumulation
from torch import nn
from torch.optim import SGD, AdamW

from adaptbs.fastai import AdaptiveBatchSize
from tests.integration.fastai.learners import doubling, make_learner, same, touchy_model, weights
from tests.integration.training import FORCED, Numbered, adaptive, loss_of, network, stock, train
from tests.integration.training import doubling as now_and_then

M = 0.1


def at(k: float) -> Any:
    return pytest.approx(1 - (1 - M) ** k, rel=1e-12)


def parts(n: int = 500, **arguments: Any) -> tuple[nn.Module, Any, Any]:
    model = network()
    optimizer = SGD(model.parameters(), 0.01)
    return model, optimizer, adaptive(Numbered(n), model, optimizer, **arguments)


def momentums(model: nn.Module, optimizer: Any, loader: Any) -> list[tuple[float, float, float]]:
    """(k, the momentum in the forward pass, the momentum inside the optimizer's step) of each batch of an epoch."""
    seen, forward, inside = [], [], []
    norm = model[1]
    handles = [
        norm.register_forward_hook(lambda module, *_: forward.append(module.momentum)),
        optimizer.register_step_pre_hook(lambda *_: inside.append(norm.momentum)),
    ]
    for batch in loader:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        seen.append((loader.training_run.scale().k, forward[-1], inside[-1]))
    for handle in handles:
        handle.remove()
    return seen


def test_it_follows_each_batch_and_is_the_users_again_after_each_epoch():
    model, optimizer, loader = parts(target=now_and_then(), **FORCED)
    for _ in range(2):
        seen = momentums(model, optimizer, loader)
        assert all(forward == inside == at(k) for k, forward, inside in seen)
        assert model[1].momentum == M and "_adaptbs_momentum" not in vars(model[1])
    assert seen[-1][0] == 16


def test_at_a_constant_batch_the_buffers_are_a_stock_loops_to_the_bit():
    found = []
    for ours in (True, False):
        model, optimizer, loader = parts(overhead=0.3, max_batch_size=16)
        torch.manual_seed(1)
        found.append(train(model, optimizer, loader if ours else stock(Numbered(500)), 2).weights)
    assert torch.equal(*found)


def test_a_run_at_four_times_the_base_batch_is_a_stock_run_with_that_momentum():
    found = []
    for ours in (True, False):
        model = network()
        optimizer = SGD(model.parameters(), 0.01 if ours else 0.04)
        fixed = {"overhead": 0, "max_batch_size": 32, "base_batch_size": 8}
        loader = adaptive(Numbered(500), model, optimizer, 32, **fixed) if ours else stock(Numbered(500), 32)
        if not ours:
            model[1].momentum = 1 - 0.9**4
        torch.manual_seed(1)
        found.append(train(model, optimizer, loader, 2).weights)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("arguments", [{"transfer": ("lr",)}, {"lr_scaling": "linear"}, {"transfer": ()}])
def test_it_follows_with_the_betas_alone(arguments):
    model, optimizer, loader = parts(target=now_and_then(), **FORCED, **arguments)
    assert {forward for _, forward, _ in momentums(model, optimizer, loader)} == {M}


def test_it_goes_by_the_samples_of_a_step_where_batches_are_accumulated():
    model, optimizer, loader = parts(batch_size=4, accumulation_steps=4, target=now_and_then(), **FORCED)
    seen = momentums(model, optimizer, loader)
    assert all(forward == at(k) for k, forward, _ in seen) and seen[-1][0] > 4


def test_after_a_break_and_after_an_error_it_is_the_users():
    model, optimizer, loader = parts(target=now_and_then(), **FORCED)
    for _ in range(2):
        momentums(model, optimizer, loader)
    for _ in loader:
        assert model[1].momentum == at(16)
        break
    assert model[1].momentum == M
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError
    # The error holds the loop's frame and with it the iteration. Another run takes that momentum for what it is.
    other = adaptive(Numbered(500), model, optimizer, base_batch_size=8, overhead=0, max_batch_size=16)
    assert all(forward == at(2) for _, forward, _ in momentums(model, optimizer, other))
    assert model[1].momentum == M


def test_a_look_into_the_loader_within_a_loop_takes_nothing_from_the_loop():
    model, optimizer, loader = parts(target=now_and_then(), **FORCED)
    for _ in range(2):
        momentums(model, optimizer, loader)
    for i, _ in enumerate(loader):
        if i == 1:
            next(iter(loader))
        if i == 2:
            assert model[1].momentum == at(16)


def test_evaluation_between_two_batches_and_checkpoints_notice_nothing():
    model, optimizer, loader = parts(target=now_and_then(), **FORCED)
    momentums(model, optimizer, loader)
    stock_keys = network().state_dict().keys()
    for batch in loader:
        assert model.state_dict().keys() == stock_keys
        before = copy.deepcopy(model.state_dict())
        model.eval()(batch[0])
        model.train()
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_resumed_run_goes_on_with_the_momentum_of_its_batch():
    model, optimizer, loader = parts(target=now_and_then(), **FORCED)
    for batch in loader:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        if loader.batch_size == 64:
            break
    state = loader.state_dict()
    model, optimizer, resumed = parts(target=now_and_then(), **FORCED)
    resumed.load_state_dict(state)
    assert momentums(model, optimizer, resumed)[0][1] == at(4)


class Momentums(Callback):
    """The momentum of each training batch, and what it is in validation and after the fit."""

    order, run_valid = 62, True

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[tuple[int, float]] = []
        self.outside: list[float] = []
        self.stop_at = stop_at

    @property
    def momentum(self) -> float:
        return self.learn.model[1].momentum

    def after_pred(self) -> None:
        if self.training:
            self.seen.append((len(self.xb[0]), self.momentum))
        else:
            self.outside.append(self.momentum)

    def after_batch(self) -> None:
        if self.training and len(self.seen) == self.stop_at:
            raise CancelFitException

    def after_fit(self) -> None:
        self.outside.append(self.momentum)


@pytest.mark.parametrize("stop_at", [-1, 25])
def test_in_fastai_too(stop_at):
    learn, watch = make_learner(n=640, model=touchy_model), Momentums(stop_at)
    callback = AdaptiveBatchSize(target=doubling, overhead=0, max_batch_size=80)
    learn.fit(2, 1e-2, cbs=[callback, watch])
    assert {size for size, _ in watch.seen} == {20, 40, 80}
    assert all(momentum == at(size / 20) for size, momentum in watch.seen)
    assert set(watch.outside) == {M} and learn.model[1].momentum == M


def test_in_fastai_a_constant_batch_leaves_the_buffers_as_they_would_be():
    found = []
    for cbs in ([AdaptiveBatchSize(overhead=0.3, max_batch_size=20)], []):
        learn = make_learner(n=403, model=touchy_model)
        learn.fit(2, 1e-2, cbs=cbs)
        found.append(weights(learn))
    assert same(*found)


def test_micro_batches_of_one_size_keep_the_momentum_as_they_grow_in_number():
    learn, watch = make_learner(bs=8, n=640, model=touchy_model), Momentums()
    callback = AdaptiveBatchSize(target=doubling, overhead=0, max_batch_size=64)
    learn.fit(1, 1e-2, cbs=[GradientAccumulation(16), callback, watch])
    assert callback.history.to_dict()["batch_size"][-1] == 64
    assert set(watch.seen) == {(8, M)}


def test_a_compiled_model_is_not_compiled_anew_for_each_batch_size():
    data, model = Numbered(2000), network()
    compiles: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiles.append(len(compiles))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    optimizer = AdamW(model.parameters(), 1e-3)
    sizes = iter([*range(16, 256, 8), *[256] * 999])
    loader = adaptive(data, compiled, optimizer, target=lambda *_: next(sizes), **FORCED)
    for _ in range(3):
        for batch in loader:
            optimizer.zero_grad()
            loss_of(compiled, batch).backward()
            optimizer.step()
    assert loader.batch_size == 256
    assert len(compiles) <= 7
