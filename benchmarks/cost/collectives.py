"""Exchanges between ranks over gloo, counted on rank 0: calls of torch.distributed by adaptbs, and their bytes."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from adaptbs import AdaptiveDataLoader
from benchmarks.cost.counted import Rows

STEPS, BATCH = 200, 8


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A loss with noise enough to measure."""
    return (model(batch) - torch.randn(len(batch), 1)).square().mean()


def _counted(counts: dict[str, int]) -> None:
    """Count what Python calls of these. Those of DistributedDataParallel itself are made in C++."""
    sizes: dict[str, Callable[..., int]] = {
        "all_reduce": lambda tensor, *_: tensor.nbytes,
        "all_gather": lambda _, tensor, *__: tensor.nbytes,
        "broadcast_object_list": lambda said, *_: len(pickle.dumps(said)),
    }
    for name, size in sizes.items():
        setattr(dist, name, _counting(getattr(dist, name), size, counts))


def _counting(stock: Callable[..., Any], size: Callable[..., int], counts: dict[str, int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counts["calls"] += 1
        counts["bytes"] += size(*args)
        return stock(*args, **kwargs)

    return call


def _train(rank: int, world_size: int, folder: str, overhead: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = SGD(model.parameters(), 1e-3)
    # Step times that are given are agreed on already; the clock would decide when there is a look.
    loader = AdaptiveDataLoader(
        Rows(STEPS * BATCH * world_size), BATCH, shuffle=True, model=model, optimizer=optimizer, batch_loss=loss,
        epochs=1, overhead=overhead, step_time=(1e-3, 1e-5), max_batch_size=BATCH, budget="epochs",
    )  # fmt: skip
    counts = {"calls": 0, "bytes": 0}
    _counted(counts)
    for batch in loader:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()
    if rank == 0:
        torch.save(counts, Path(folder) / "counts.pt")


def of_an_epoch(world_size: int, overhead: float) -> dict[str, int]:
    """Calls and bytes on rank 0 in an epoch of `STEPS` steps."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_train, (world_size, folder, overhead), nprocs=world_size)
        counts: dict[str, int] = torch.load(Path(folder) / "counts.pt")
    return counts
