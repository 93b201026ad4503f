"""What ShardedGradients watches, with reductions that do nothing; tests/integration/test_ranks.py has their values."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from adaptbs.gradients.fsdp import ShardedGradients, is_sharded, why_shards_are_unseen
from adaptbs.ranks import Ranks

# By its version, and not by what the package finds, which is what the tests are to judge.
pytestmark = pytest.mark.skipif(torch.__version__ < "2.13", reason="its reduce-scatter cannot be watched before 2.13")


@pytest.fixture(scope="module", autouse=True)
def two_ranks() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def sharded() -> nn.Sequential:
    model, mesh = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), init_device_mesh("cpu", (2,))
    for part in (model[0], model):
        fully_shard(part, mesh=mesh)
    return model


def step(model: nn.Module, watch: ShardedGradients, synced: list[bool]) -> float:
    """|g|^2 of a step, by its passes: are their gradients reduced?"""
    last = False
    watch.arm(lambda: last)
    for i, sync in enumerate(synced):
        last = i == len(synced) - 1
        model.set_requires_gradient_sync(sync)
        model(torch.ones(3, 4)).sum().backward()
    norms = watch.norms(3 * len(synced), len(synced))
    watch.disarm()
    model.zero_grad()
    return float(norms.small)


def test_a_step_reduced_at_some_passes_is_not_measured_and_said_once(caplog):
    model = sharded()
    watch = ShardedGradients(model, Ranks.from_arguments())
    assert all(math.isfinite(step(model, watch, synced)) for synced in ([True], [False, True], [True, True]))
    assert not caplog.records
    assert all(math.isnan(step(model, watch, [False, True, False, True])) for _ in range(2))
    assert len(caplog.records) == 1
    assert "reduced 2 times in an optimizer step of 4 backward passes" in caplog.text


def test_layers_that_are_unfrozen_later_are_watched_from_then_on():
    model = sharded()
    model[0].requires_grad_(False)
    watch = ShardedGradients(model, Ranks.from_arguments())
    frozen = step(model, watch, [True])
    model[0].requires_grad_(True)
    assert step(model, watch, [True]) > frozen > 0


def test_somebody_elses_reduce_scatter_is_called_and_stays():
    class Own:
        calls = 0

        def __init__(self, inner):
            self.allocate = inner.allocate
            self.inner = inner

        def __call__(self, **arguments):
            self.calls += 1
            return self.inner(**arguments)

    model = sharded()
    group = model._get_fsdp_state()._fsdp_param_groups[0]
    own, watch = Own(group._reduce_scatter_comm), ShardedGradients(model, Ranks.from_arguments())
    model.set_custom_reduce_scatter(own)
    step(model, watch, [True])
    assert own.calls == 1 and group._reduce_scatter_comm is own
    watch.arm(lambda: True)
    later = Own(own)
    model.set_custom_reduce_scatter(later)
    watch.disarm()
    assert group._reduce_scatter_comm is later


def test_a_step_without_a_backward_pass_has_no_norms():
    model = sharded()
    watch = ShardedGradients(model, Ranks.from_arguments())
    watch.arm(lambda: True)
    assert math.isnan(float(watch.norms(3).small)), "in a process group that has to be asked all the same"


def test_meta_parameters_that_get_memory_later_are_the_models():
    with torch.device("meta"):
        model = sharded()
    model.to_empty(device="cpu")
    assert is_sharded(model) and why_shards_are_unseen(model, 2) is None
