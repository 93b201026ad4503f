"""Models whose parameters are split over ranks: an error at construction that says what to do."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastaiLoader
from fastai.learner import Learner
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, TensorDataset

from adaptbs import AdaptiveDataLoader, bs_find, probe_memory
from adaptbs.fastai import AdaptiveBatchSize

SAYS = "parameters must lie whole on each rank.*DistributedDataParallel"


@pytest.fixture(scope="module", autouse=True)
def two_ranks() -> Iterator[None]:
    """A process group of two ranks, of which there is only this one."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def fsdp2() -> nn.Module:
    return fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))


def one_layer() -> nn.Module:
    model, mesh = network(), init_device_mesh("cpu", (2,))
    model[2].weight = nn.Parameter(distribute_tensor(model[2].weight.data, mesh, [Shard(1)]))
    return model


def fsdp1() -> nn.Module:
    return nn.Sequential(FullyShardedDataParallel(network(), device_id=torch.device("cpu")))


def data() -> TensorDataset:
    return TensorDataset(torch.randn(64, 8), torch.randn(64, 1))


def of_a_loader(model: nn.Module, **arguments: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    AdaptiveDataLoader(data(), 16, model=model, optimizer=optimizer, loss_func=nn.MSELoss(), epochs=1, **arguments)


def of_a_loader_alone(model: nn.Module) -> None:
    of_a_loader(model, rank=0, world_size=1)


def of_bs_find(model: nn.Module) -> None:
    bs_find(model, nn.MSELoss(), DataLoader(data(), 16))


def of_probe_memory(model: nn.Module) -> None:
    probe_memory(model, nn.MSELoss(), DataLoader(data(), 16))


def of_fastai(model: nn.Module) -> None:
    dls = DataLoaders(FastaiLoader(data(), bs=16), FastaiLoader(data(), bs=16), device=torch.device("cpu"))
    Learner(dls, model, loss_func=nn.MSELoss()).fit(1, 1e-3, cbs=[AdaptiveBatchSize()])


@pytest.mark.parametrize("made", [fsdp2, one_layer, fsdp1])
@pytest.mark.parametrize("face", [of_a_loader, of_a_loader_alone, of_bs_find, of_probe_memory, of_fastai])
def test_shards_are_refused_at_once(made, face):
    if (made, face) != (fsdp2, of_a_loader):  # on several ranks: tests/integration/test_ranks.py
        with pytest.raises(TypeError, match=SAYS):
            face(made())


def one_part() -> nn.Module:
    model = network()
    fully_shard(model[0], mesh=init_device_mesh("cpu", (2,)))
    return model


def all_but_one() -> nn.Module:
    model = network()
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params={model[2].weight})


def one_rank() -> nn.Module:
    return fully_shard(network(), mesh=DeviceMesh("cpu", [0]))


def two_meshes() -> nn.Module:
    model = network()
    fully_shard(model[0], mesh=DeviceMesh("cpu", [[0], [1]], mesh_dim_names=("replicate", "shard")))
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (one_part, r"does not reduce the gradient of 2.weight: apply it to the whole model.*DistributedDataParallel"),
        (all_but_one, "does not reduce the gradient of 2.weight"),
        (one_rank, "sharded over 1 of 1 ranks, and the loader has 2: shard over all ranks"),
        (two_meshes, "sharded over 1 of 2 ranks"),
    ],
)
def test_shards_whose_gradients_are_not_seen_whole_are_refused_at_once(made, says):
    with pytest.raises(TypeError, match=says):
        of_a_loader(made())


def test_a_torch_that_lets_nobody_watch_is_refused_at_once(monkeypatch):
    monkeypatch.delattr(FSDPModule, "set_custom_reduce_scatter")
    with pytest.raises(TypeError, match="this torch's fully_shard cannot be watched: use torch 2"):
        of_a_loader(fsdp2())


def test_a_whole_model_is_none_of_them():
    bs_find(network(), nn.MSELoss(), DataLoader(data(), 16))
