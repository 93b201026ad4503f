import pytest
import torch
from torch import nn

from adaptbs.hyperparameters.step_hook import StepHook
from adaptbs.hyperparameters.transfer import HYPERPARAMETERS
from adaptbs.types import Scale


def weight_one() -> tuple[nn.Parameter, torch.optim.SGD]:
    """A weight of 1 with gradient 1, and SGD at a learning rate of .1: a step takes it to .9."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    return weight, torch.optim.SGD([weight], lr=0.1)


def test_the_step_is_scaled_and_the_learning_rate_is_not():
    weight, optimizer = weight_one()
    StepHook(optimizer, lambda: Scale(lr_factor=3.0))
    optimizer.step()
    assert weight.item() == pytest.approx(0.7)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_factor_is_asked_at_every_step():
    weight, optimizer = weight_one()
    factors = iter([1.0, 2.0])
    StepHook(optimizer, lambda: Scale(lr_factor=next(factors)))
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
    optimizer.step()
    assert weight.item() == pytest.approx(0.7)


def test_every_group_is_scaled():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first.grad = second.grad = torch.ones(1)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}])
    StepHook(optimizer, lambda: Scale(lr_factor=2.0))
    optimizer.step()
    assert (first.item(), second.item()) == pytest.approx((0.8, 0.6))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_learning_rate_held_in_a_tensor_is_the_same_tensor_afterwards():
    weight, _ = weight_one()
    lr = torch.tensor(0.1)
    optimizer = torch.optim.Adam([weight], lr=lr, foreach=False, capturable=False)
    StepHook(optimizer, lambda: Scale(lr_factor=2.0))
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.1)


def test_a_step_that_raised_leaves_nothing_behind_after_restore():
    _, optimizer = weight_one()
    scaled = StepHook(optimizer, lambda: Scale(lr_factor=2.0))

    def closure():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(closure)
    scaled.restore()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_removed_it_is_as_if_it_had_not_been():
    weight, optimizer = weight_one()
    StepHook(optimizer, lambda: Scale(lr_factor=3.0)).remove()
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "Adam, tensors": lambda p: torch.optim.Adam(
        p, lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False
    ),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "AdamW, fused, tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "RMSprop, foreach": lambda p: torch.optim.RMSprop(p, lr=0.1, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_each_step_everything_is_the_very_object_it_was(name):
    weight = nn.Parameter(torch.ones(1))
    optimizer = OPTIMIZERS[name]([weight])
    k, inside = 1.0, []
    StepHook(optimizer, lambda: Scale(k, k), HYPERPARAMETERS)
    optimizer.register_step_pre_hook(lambda *_: inside.append(dict(optimizer.param_groups[0])))
    found = dict(optimizer.param_groups[0])
    for k in (1.0, 4.0, 4.0, 1.0, 0.5):  # noqa: B007 (the lambdas read it)
        weight.grad = torch.ones(1)
        optimizer.step()
        group = optimizer.param_groups[0]
        assert group.keys() == found.keys()
        assert all(group[key] is found[key] for key in found)
    assert inside[0] == found
    assert inside[1]["lr"] == pytest.approx(0.4, rel=0.5)
    assert all(later["lr"] != found["lr"] for later in inside[1:3])


def test_steps_that_fail_or_are_skipped_are_not_counted():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    scaled = StepHook(optimizer, lambda: Scale(k=16.0), HYPERPARAMETERS)
    found = dict(optimizer.param_groups[0])

    def fails():
        raise RuntimeError

    weight.grad = torch.ones(1)
    optimizer.step()
    with pytest.raises(RuntimeError):
        optimizer.step(fails)
    scaled.restore()
    assert optimizer.param_groups[0] == found
    optimizer.step()
    scaled.scaler.count_steps()
    assert scaled.scaler.state_dict()["accumulated"] == [[2, 4.0, 32.0, 2.0, 16.0, False]]


def test_at_a_constant_batch_adam_is_a_stock_adam_to_the_bit():
    def run(ours: bool) -> float:
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        if ours:
            StepHook(optimizer, Scale, HYPERPARAMETERS)
        for i in range(20):
            weight.grad = torch.full((1,), 1.0 + i % 3)
            optimizer.step()
        return weight.item()

    assert run(True) == run(False)
