import copy
import io

import pytest
import torch
from torch import nn

from adaptbs.hyperparameters import RunningStatistics


def at(k: float, m: float = 0.1) -> float:
    return pytest.approx(1 - (1 - m) ** k, rel=1e-12)


class Own(nn.Module):
    """A norm of somebody's own, not made from one of torch's."""

    def __init__(self, momentum) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(2))


@pytest.mark.parametrize("k", [0.5, 2.0, 16.0])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm2d(),
        nn.InstanceNorm2d(2, track_running_stats=True), Own(0.1),
    ],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_the_momentum_of_every_kind_of_running_statistics(norm, k):
    statistics = RunningStatistics(nn.Sequential(norm))
    statistics.follow(k)
    assert norm.momentum == at(k)
    statistics.restore()
    assert norm.momentum == 0.1 and vars(norm).keys() == vars(type(norm)(0.1) if type(norm) is Own else norm).keys()


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2, momentum=0.0), nn.BatchNorm1d(2, momentum=1.0),
        nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), Own(0.99), Own("a word"),
        torch.jit.script(nn.Sequential(nn.BatchNorm1d(2))),
    ],
    ids=lambda norm: f"{type(norm).__name__}-{getattr(norm, 'momentum', '')}",
)  # fmt: skip
def test_what_is_no_average_over_steps_is_left_alone(norm):
    found = getattr(norm, "momentum", None)
    RunningStatistics(nn.Sequential(norm)).follow(4.0)
    assert getattr(norm, "momentum", None) == found


def test_one_pass_leaves_as_much_of_the_old_as_k_passes_over_parts():
    torch.manual_seed(0)
    norm, base = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    part = torch.randn(8, 3)
    RunningStatistics(norm).follow(4.0)
    norm(torch.cat([part] * 4))
    for _ in range(4):
        base(part)
    torch.testing.assert_close(norm.running_mean, base.running_mean)


def test_only_the_momentum_changes_and_nothing_at_the_base_batch():
    model = nn.Sequential(nn.BatchNorm1d(2))
    before = copy.deepcopy(model.state_dict())
    statistics = RunningStatistics(model)
    statistics.follow(1.0)
    assert vars(model[0]).keys() == vars(nn.BatchNorm1d(2)).keys() and model[0].momentum == 0.1
    statistics.follow(4.0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_changes_do_not_come_on_top_of_each_other():
    norm = nn.BatchNorm1d(2)
    for k in (4.0, 8.0, 2.0):
        RunningStatistics(norm).follow(k)  # each by another run, whose predecessor ended without a word
        assert norm.momentum == at(k)
    RunningStatistics(norm).follow(1.0)
    assert norm.momentum == 0.1


def test_what_the_user_sets_meanwhile_is_the_users():
    norm = nn.BatchNorm1d(2)
    statistics = RunningStatistics(norm)
    statistics.follow(4.0)
    norm.momentum = 0.01
    statistics.follow(8.0)
    assert norm.momentum == at(8, 0.01)
    norm.momentum = None
    statistics.restore()
    assert norm.momentum is None


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_copy_of_the_model_knows_its_own_momentum(how):
    model = nn.Sequential(nn.BatchNorm1d(2))
    RunningStatistics(model).follow(4.0)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    RunningStatistics(twin).follow(1.0)
    assert twin[0].momentum == 0.1 and model[0].momentum == at(4)


def test_a_module_that_came_later_follows_and_one_that_went_is_given_back():
    model = nn.Sequential(nn.BatchNorm1d(2))
    statistics, first = RunningStatistics(model), model[0]
    statistics.follow(2.0)
    model[0] = nn.BatchNorm1d(2)
    statistics.follow(4.0)
    assert model[0].momentum == at(4) and first.momentum == 0.1


def test_a_compiled_model_is_compiled_anew_for_few_momentums():
    norm = nn.BatchNorm1d(2)
    statistics, seen = RunningStatistics(torch.compile(norm, backend="eager")), set()
    for tenths in range(5, 320):
        statistics.follow(tenths / 10)
        seen.add(norm.momentum)
    assert seen == {0.1, *(1 - 0.9**k for k in (0.5, 2, 4, 8, 16, 32))}
