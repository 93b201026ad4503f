import torch
from torch import nn

from adaptbs.hyperparameters.steps_seen import StepsSeen


def made(steps: list[int]) -> torch.optim.Optimizer:
    """An optimizer that has made so many steps on each of its groups."""
    optimizer = torch.optim.Adam([{"params": [nn.Parameter(torch.ones(1))]} for _ in steps])
    for i in range(max(steps)):
        for group, of_group in zip(optimizer.param_groups, steps, strict=True):
            group["params"][0].grad = torch.ones(1) if i < of_group else None
        optimizer.step()
    return optimizer


def test_groups_that_have_seen_the_same_steps_share_one():
    optimizer, seen = made([3, 2, 3]), StepsSeen()
    seen.count(optimizer.state, optimizer.param_groups, wait=True)
    assert [leader.group for leader in seen.leaders] == [0, 1]
    assert [each.steps for each in seen.of_groups] == [3, 2, 3]
    assert seen.of_groups[0] is seen.of_groups[2] is seen.leaders[0].accumulated


def test_groups_part_where_one_is_frozen_and_a_state_says_so_too():
    optimizer, seen, other = made([1, 1]), StepsSeen(), StepsSeen()
    seen.count(optimizer.state, optimizer.param_groups, wait=True)
    assert len(seen.leaders) == 1
    optimizer.param_groups[1]["params"][0].grad = None
    optimizer.step()
    seen.count(optimizer.state, optimizer.param_groups, wait=True)
    assert [leader.group for leader in seen.leaders] == [0, 1]
    other.load_state_dict(seen.state_dict())
    assert other.of_groups == seen.of_groups and not other.counted
