"""The cost of a step in parameter groups and tensors, by what is called rather than by the time that it takes."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastai.optimizer import Adam as FastAdam
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.optim import SGD, Adam, AdamW

from adaptbs.fastai.hyperparameters import FastaiStepHook
from adaptbs.hyperparameters import StepHook
from adaptbs.hyperparameters.bias_correction import StepCount
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS
from adaptbs.types import Scale


def calls(run: Callable[[], Any]) -> Counter[str]:
    """Functions entered in Python, by name."""
    counted: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "gc_callback":  # Hypothesis', wherever a collection falls
            counted[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counted


def weights(n: int) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(2)) for _ in range(n)]
    for p in made:
        p.grad = torch.ones(2)
    return made


def with_groups(kind: Any, n: int, **options: Any) -> Any:
    groups = [{"params": [p], "lr": 1e-3 * (1 + i)} for i, p in enumerate(weights(n))]
    optimizer = kind(groups, lr=1e-3, **options)
    optimizer.step()
    return optimizer


def hooks(optimizer: Any, k: float = 4.0) -> Callable[[], None]:
    hook = StepHook(optimizer, lambda: Scale(k, k**0.5), HYPERPARAMETERS)

    def step() -> None:
        hook._before()
        hook.restore()

    step()  # the first looks at all groups, the second keeps what it has seen before
    step()
    return step


@pytest.mark.parametrize("kind", [AdamW, Adam, SGD])
def test_groups_that_differ_in_their_learning_rate_alone_are_computed_as_one(kind):
    one, many = (calls(hooks(with_groups(kind, n))) for n in (1, 100))
    assert many == one


def test_as_many_computations_as_there_are_distinct_groups():
    groups = [{"params": [p], "weight_decay": i % 3, "betas": (0.9, 0.9 + 0.01 * (i % 2))} for i, p in
              enumerate(weights(60))]  # fmt: skip
    optimizer = AdamW(groups)
    optimizer.step()
    counted = calls(hooks(optimizer))
    assert counted["at"] == counted["corrections"] == 6
    assert not counted["factors"], "all but the bias correction stays from step to step"
    assert counted["read"] == 1, "all of them have made the same steps"


def test_groups_that_have_made_other_steps_are_counted_apart():
    optimizer = with_groups(AdamW, 4)
    for group in optimizer.param_groups[:2]:
        group["params"][0].grad = None
    optimizer.step()
    step = hooks(optimizer)
    assert calls(step)["read"] == 2
    ours = optimizer.__dict__["_adaptbs_hyperparameters"]
    ours.count_steps()
    assert [int(steps) for steps, *_ in ours.state_dict()["accumulated"]] == [1, 1, 2, 2]
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    optimizer.param_groups[0]["params"][0].grad = None
    optimizer.step()
    ours.count_steps()
    assert [int(steps) for steps, *_ in ours.state_dict()["accumulated"]] == [1, 2, 3, 3]
    assert len({second for _, _, second, *_ in ours.state_dict()["accumulated"]}) == 3


def test_a_group_added_in_mid_run_is_counted_from_its_own_first_step():
    optimizer = with_groups(AdamW, 2)
    step = hooks(optimizer)
    optimizer.add_param_group({"params": weights(1)})
    step()
    optimizer.step()
    ours = optimizer.__dict__["_adaptbs_hyperparameters"]
    ours.count_steps()
    assert [int(steps) for steps, *_ in ours.state_dict()["accumulated"]] == [2, 2, 1]


class Watched(dict):
    """A state that counts how often it is looked into."""

    looks = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


def test_of_5000_tensors_the_one_that_trains_is_remembered():
    many = [torch.zeros(1) for _ in range(5000)]
    state, count = Watched({many[-1]: {"step": torch.tensor(3.0)}}), StepCount(many)
    assert count.read(state, {}, wait=False) == 3
    state.looks = 0
    assert [count.read(state, {}, wait=False) for _ in range(9)] == [3] * 9
    assert state.looks == 9


def test_of_5000_frozen_tensors_none_is_looked_at_again_until_something_trains():
    many = [torch.zeros(1) for _ in range(5000)]
    other, state, count = torch.zeros(1), Watched(), StepCount(many)
    for _ in range(3):
        assert count.read(state, {}, wait=False) == 0
    assert state.looks == 5000
    state[other] = {"step": 1}
    assert count.read(state, {}, wait=False) == 0
    assert state.looks == 10_000
    state[many[7]] = {"step": 5}
    assert count.read(state, {}, wait=False) == 5


def test_a_state_begun_anew_is_noticed():
    (weight,) = weights(1)
    state, count = {weight: {"step": 9}}, StepCount([weight])
    assert count.read(state, {}, wait=False) == 9
    state.clear()
    assert count.read(state, {}, wait=False) == 0
    state[weight] = {"step": 1}
    assert count.read(state, {}, wait=False) == 1


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_a_count_that_grows_by_one_a_step_is_read_right_whatever_happens_to_it(options):
    weight = weights(1)[0]
    optimizer, count = AdamW([weight], **options), StepCount([weight])

    def read() -> int | None:
        return count.read(optimizer.state, optimizer.param_groups[0], wait=False)

    def made() -> int:
        return int(optimizer.state[weight]["step"])

    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for _ in range(5):
        optimizer.step()
        assert read() == made()
    assert read() == made() == 6, "no step has been made since"
    optimizer.step(), optimizer.step()
    assert read() == made() == 8, "two have"
    optimizer.load_state_dict(saved)
    assert read() == made() == 1
    for _ in range(3):
        optimizer.step()
        assert read() == made()
    optimizer.state.clear()
    assert read() == 0
    for _ in range(3):
        optimizer.step()
        assert read() == made()


def test_optimizers_that_count_in_their_groups():
    (weight,) = weights(1)
    assert StepCount([weight]).read({weight: {}}, {"step": torch.tensor(4)}, wait=False) == 4
    assert StepCount([weight]).read({weight: {}}, {"k": 5, "weight_lr_power": 2.0}, wait=False) == 5
    assert StepCount([weight]).read({weight: {}}, {"k": 5}, wait=False) == 0, "somebody else's k"


@pytest.mark.parametrize("kind", ["Adam", "OptimWrapper"])
def test_fastai_calls_as_little_for_15_groups_as_for_3(kind):
    def made(n: int) -> Any:
        groups = [[p] for p in weights(n)]
        opt = FastAdam(groups, lr=1e-3) if kind == "Adam" else OptimWrapper(groups, opt=AdamW, lr=1e-3)
        opt.set_hyper("lr", slice(1e-4, 1e-3))
        opt.step()
        return FastaiStepHook(opt, HYPERPARAMETERS)

    def step(hook: FastaiStepHook) -> Callable[[], None]:
        def run() -> None:
            hook.scale(Scale(4.0, 2.0))
            hook.restore()

        run()
        run()
        return run

    few, many = calls(step(made(3))), calls(step(made(15)))
    assert many == few
    assert "set_hyper" not in many and sum(many.values()) <= 20
