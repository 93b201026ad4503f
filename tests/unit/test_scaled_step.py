import pytest
import torch
from torch import nn

from adaptbs.scaled_step import ScaledStep


def weight_one() -> tuple[nn.Parameter, torch.optim.SGD]:
    """A weight of 1 with gradient 1, and SGD at a learning rate of .1: a step takes it to .9."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    return weight, torch.optim.SGD([weight], lr=0.1)


def test_the_step_is_scaled_and_the_learning_rate_is_not():
    weight, optimizer = weight_one()
    ScaledStep(optimizer, lambda: 3.0)
    optimizer.step()
    assert weight.item() == pytest.approx(0.7)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_factor_is_asked_at_every_step():
    weight, optimizer = weight_one()
    factors = iter([1.0, 2.0])
    ScaledStep(optimizer, lambda: next(factors))
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
    optimizer.step()
    assert weight.item() == pytest.approx(0.7)


def test_every_group_is_scaled():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first.grad = second.grad = torch.ones(1)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}])
    ScaledStep(optimizer, lambda: 2.0)
    optimizer.step()
    assert (first.item(), second.item()) == pytest.approx((0.8, 0.6))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_learning_rate_held_in_a_tensor_is_the_same_tensor_afterwards():
    weight, _ = weight_one()
    lr = torch.tensor(0.1)
    optimizer = torch.optim.Adam([weight], lr=lr, foreach=False, capturable=False)
    ScaledStep(optimizer, lambda: 2.0)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(0.1)


def test_a_step_that_raised_leaves_nothing_behind_after_restore():
    _, optimizer = weight_one()
    scaled = ScaledStep(optimizer, lambda: 2.0)

    def closure():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        optimizer.step(closure)
    scaled.restore()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_removed_it_is_as_if_it_had_not_been():
    weight, optimizer = weight_one()
    ScaledStep(optimizer, lambda: 3.0).remove()
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
