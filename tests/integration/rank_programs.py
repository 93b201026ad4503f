"""What each process of tests/integration/test_ranks.py runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from adaptbs import AdaptiveDataLoader, GlobalBatch
from adaptbs.gradients import RankGradients, ShardedGradients
from adaptbs.loader import AdaptedLoader, LoopFacts
from adaptbs.ranks import Ranks
from adaptbs.run import NoLookAhead, training_run
from tests.simulated_device import OnDevice, SimulatedMemory

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(406, 8, generator=GENERATOR)
OVERFLOWS = 16  # the batch, from 1
Y = X.sum(1, keepdim=True) + 3 * torch.randn(406, 1, generator=GENERATOR)


class Numbered(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i], i


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def optimizer_of(name: str, model: nn.Module):
    if name == "groups":
        weights, biases = ([p for p in model.parameters() if (p.ndim > 1) is weight] for weight in (True, False))
        return torch.optim.AdamW([{"params": weights, "lr": 2e-3}, {"params": biases, "weight_decay": 0}])
    return {
        "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    }[name](model.parameters())  # fmt: skip


def batch_loss(model, batch):
    return mse_loss(model(batch[0]), batch[1])


def doubling(noise_scale, batch_size, progress):
    return 2 * batch_size


def loader_of(model, optimizer, batch_size, **arguments):
    arguments = {"shuffle": True, "epochs": 2, "overhead": 0.5, "decide_every": 0.2, "step_time": (1, 0), **arguments}
    return AdaptiveDataLoader(
        Numbered(), batch_size, model=model, optimizer=optimizer, **arguments
    )  # fmt: skip


def flat(model) -> torch.Tensor:
    """All weights; collective where they are sharded."""
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return torch.cat([p.detach().flatten() for p in whole])


def sharded(model: nn.Sequential) -> nn.Module:
    """Its layers each in a reduce-scatter of their own; the last one's weight is on one rank alone."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model):  # the root has what is left
        fully_shard(layer, mesh=mesh)
    return model


def compressed(model: nn.Module) -> DistributedDataParallel:
    """Gradients are reduced in half precision, by a hook."""
    model = DistributedDataParallel(model)
    model.register_comm_hook(None, fp16_compress_hook)
    return model


def hybrid(model: nn.Sequential) -> nn.Module:
    """Sharded over pairs of ranks, and alike in each pair."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    for layer in (model[0], model):
        fully_shard(layer, mesh=mesh)
    return model


class PartlyIdle(nn.Module):
    """A layer of it is never used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.used, self.idle = model, nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


WRAPPED = {
    "ddp": DistributedDataParallel,
    "static": lambda model: DistributedDataParallel(model, static_graph=True),
    "unused": lambda model: DistributedDataParallel(PartlyIdle(model), find_unused_parameters=True),
    "hybrid": hybrid,
    "compressed": compressed,
    "fsdp": sharded,
    "fsdp each": sharded,
}


def average_by_hand(model) -> None:
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def train(loader, model, optimizer, epochs=2, way="ddp", parts=1):
    """Indices, sizes and weights of every batch."""
    seen = {"indices": [], "sizes": [], "weights": []}
    for _ in range(epochs):
        for i, batch in enumerate(loader, 1):
            seen["weights"].append(flat(model))
            seen["indices"].append(batch[2])
            seen["sizes"].append(loader.global_batch_size)
            synced = i % parts == 0
            if way == "fsdp":
                model.set_requires_gradient_sync(synced)
            with nullcontext() if synced or way != "ddp" else model.no_sync():
                (batch_loss(model, batch) / parts).backward()
            if synced:
                if way == "by hand":
                    average_by_hand(model)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    return seen


def grown(rank, world, out, way="ddp", name="sgd", parts=1, **arguments):
    """A run whose batch grows, in the way that ranks are used."""
    model = WRAPPED.get(way, lambda model: model)(network())
    optimizer = optimizer_of(name, model)
    loader = loader_of(model, optimizer, 8, target=doubling, max_batch_size=32, accumulation_steps=parts, **arguments)
    seen = train(loader, model, optimizer, way=way, parts=parts)
    return {**seen, "last": flat(model), "history": loader.history.records, "state": loader.state_dict()}


def scaled(rank, world, out):
    """The same in float16's way: a loss scale, and a step that one rank's overflow makes all of them leave out."""
    model = DistributedDataParallel(network())
    optimizer, scaler = optimizer_of("sgd", model), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(scaler.get_scale()))
    loader = loader_of(model, optimizer, 8, target=doubling, max_batch_size=32, lr_scaling="linear")
    seen = {"indices": [], "sizes": [], "weights": []}
    for _ in range(2):
        for batch in loader:
            seen["weights"].append(flat(model))
            seen["indices"].append(batch[2])
            seen["sizes"].append(loader.global_batch_size)
            loss = batch_loss(model, batch)
            overflows = len(seen["sizes"]) == OVERFLOWS and rank == 1
            scaler.scale(loss * torch.inf if overflows else loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return {
        **seen, "last": flat(model), "history": loader.history.records, "state": loader.state_dict(), "steps": steps
    }  # fmt: skip


def ahead(rank, world, out):
    """A loop that fetches the next batch before it trains on this one."""
    model = DistributedDataParallel(network())
    optimizer = optimizer_of("sgd", model)
    loader = loader_of(model, optimizer, 8, target=doubling, max_batch_size=32, lr_scaling="linear")
    indices, trained = [], []

    def one_ahead():
        batches = iter(loader)
        this = next(batches)
        for following in batches:
            yield this
            this = following
        yield this

    optimizer.register_step_pre_hook(lambda *_: trained.append((loader.global_batch_size, loader.lr_factor)))
    for _ in range(2):
        for batch in one_ahead():
            indices.append(batch[2])
            batch_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {
        "indices": indices, "trained": trained, "last": flat(model), "history": loader.history.records,
        "state": loader.state_dict(),
    }  # fmt: skip


def closure(rank, world, out):
    """A trainer that steps its optimizer with a closure, and took a DistributedSampler's loader over."""
    model, sampler = DistributedDataParallel(network()), torch.utils.data.DistributedSampler(Numbered(), seed=3)
    optimizer = optimizer_of("sgd", model)
    loader = AdaptedLoader(
        LoopFacts(look_ahead=NoLookAhead, says_when_ready=True), DataLoader(Numbered(), 8, sampler=sampler),
        model=model, optimizer=optimizer, epochs=2, overhead=0.5, decide_every=0.2, step_time=(1, 0), target=doubling,
        max_batch_size=32,
    )  # fmt: skip
    seen = {"indices": [], "sizes": [], "weights": []}
    for epoch in range(2):
        loader.order.set_epoch(epoch)
        for batch in loader:
            seen["weights"].append(flat(model))
            seen["indices"].append(batch[2])
            seen["sizes"].append(loader.global_batch_size)

            def backward(batch=batch):
                optimizer.zero_grad()
                loss = batch_loss(model, batch)
                loss.backward()
                loader.gradients_are_ready()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                return loss

            optimizer.step(backward)
    sampler.set_epoch(0)
    return {
        **seen, "last": flat(model), "history": loader.history.records, "state": loader.state_dict(),
        "stock": list(sampler),
    }  # fmt: skip


def clipped_gradient(model) -> list[torch.Tensor]:
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    return [p.grad.full_tensor() for p in model.parameters()]


SYNCED = {  # by pass of a step: are its gradients reduced?
    "one": [True], "last": [False, True], "each": [True, True], "partly": [False, True, False, True],
    "first": [True, False],
}  # fmt: skip


def shards(rank, world, out):
    """Norms of single steps, by how their gradients are accumulated, and the gradients with and without watching."""
    found = {}
    for name, synced in SYNCED.items():
        gradients = []
        for watches in (True, False):
            model = sharded(network())
            watch = ShardedGradients(model, Ranks.from_arguments())
            if watches:
                watch.arm(lambda: ends)  # noqa: B023
            for i, sync in enumerate(synced):
                ends, mine = i == len(synced) - 1, slice(16 * i + 8 * rank, 16 * i + 8 * rank + 8)
                model.set_requires_gradient_sync(sync)
                (batch_loss(model, (X[mine], Y[mine])) / len(synced)).backward()
            gradients.append(clipped_gradient(model))
            if watches:
                norms = watch.norms(8 * len(synced), len(synced))
                found[name] = norms.small_size, float(norms.small), norms.large_size, float(norms.large)
                watch.disarm()
        assert all(map(torch.equal, *gradients))
        groups = [m._get_fsdp_state()._fsdp_param_groups for m in (model, model[0])]
        assert {type(group._reduce_scatter_comm).__name__ for (group,) in groups} == {"DefaultReduceScatter"}
    return found


def global_batch(rank, world, out, way="fsdp"):
    """A loop with data of its own, as torchtitan's, whose batch grows by accumulation."""
    model, ranks = WRAPPED[way](network()), Ranks.from_arguments()
    watch = ShardedGradients(model, ranks) if way == "fsdp" else RankGradients(model, ranks, passes=2)
    optimizer = optimizer_of("adamw", model)
    batch = GlobalBatch(16, micro_batch_size=4, total=2400, max_batch_size=64, decide_every=0.1)
    generator = torch.Generator().manual_seed(rank)
    steps = []
    while batch.seen < batch.total:
        k, last = batch.accumulation_steps, False
        mine = torch.randint(len(X), (k, 4), generator=generator)
        steps.append((batch.seen, batch.global_batch_size, mine, flat(model)))
        watch.arm(lambda: last)  # noqa: B023
        for i, rows in enumerate(mine):
            last = i == k - 1
            if way == "fsdp":
                model.set_requires_gradient_sync(last)
            with nullcontext() if last or way == "fsdp" else model.no_sync():
                (batch_loss(model, (X[rows], Y[rows])) / k).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        norms = watch.norms(4 * k, k) if way == "fsdp" else watch.norms(4 * k)
        watch.disarm()
        optimizer.step()
        optimizer.zero_grad()
        batch.step(norms)
    return {"steps": steps, "state": batch.state_dict(), "history": batch.history.records}


def real_clock(rank, world, out):
    return grown(rank, world, out, step_time=None, overhead=0.2, drop_last=True, num_workers=1)


def checkpoint(rank, world, out):
    """A run that is saved by rank 0 alone in mid-epoch, and another that goes on from there on all ranks."""

    def start():
        model = DistributedDataParallel(network())
        optimizer = optimizer_of("adamw", model)
        return loader_of(model, optimizer, 8, target=doubling, max_batch_size=32), model, optimizer

    loader, model, optimizer = start()
    whole = []
    for _ in range(2):
        for batch in loader:
            batch_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            whole.append(batch[2])
            if len(whole) == 9 and rank == 0:
                things = {"loader": loader, "model": model, "optimizer": optimizer}
                torch.save({name: thing.state_dict() for name, thing in things.items()}, Path(out) / "checkpoint.pt")
    last, (loader, model, optimizer) = flat(model), start()
    dist.barrier()
    state = torch.load(Path(out) / "checkpoint.pt")
    for thing, name in ((loader, "loader"), (model, "model"), (optimizer, "optimizer")):
        thing.load_state_dict(state[name])
    rest = []
    for _ in range(2):
        for batch in loader:
            batch_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            rest.append(batch[2])
    return {"whole": whole, "rest": rest, "last": last, "resumed": flat(model), "saved": state}


def shares(rank, world, out, parts=1, **arguments):
    """Epochs that are shares of the run's progress: indices of each, and the samples that the run took."""
    model = DistributedDataParallel(network())
    optimizer = optimizer_of("sgd", model)
    loader = loader_of(
        model, optimizer, 8, epochs=3, target=lambda _, size, __: 64 * parts, max_batch_size=32,
        accumulation_steps=parts, lr_scaling="linear", **arguments,
    )  # fmt: skip
    epochs, lasts = [], []
    for _ in loader.epochs(3):
        epochs.append([])
        for i, batch in enumerate(loader, 1):
            epochs[-1].append(batch[2])
            lasts.append((i == len(loader), loader.training_run.tracker.current.ends_step == (i % parts == 0)))
            synced = i % parts == 0
            with nullcontext() if synced else model.no_sync():
                (batch_loss(model, batch) / parts).backward()
            if synced:
                optimizer.step()
                optimizer.zero_grad()
    progress = loader.training_run.controller.progress_tracker
    return {
        "indices": [batch for epoch in epochs for batch in epoch], "batches": [len(epoch) for epoch in epochs],
        "lasts": lasts, "samples": progress.samples, "complete": progress.complete, "last": flat(model),
        "state": loader.state_dict(),
    }  # fmt: skip


ONE_RANK: dict = {  # arguments that rank 0 gives otherwise, or not at all
    "batch_loss": batch_loss, "shuffle": False, "generator": GENERATOR, "epochs": 3, "max_batch_size": 64,
    "step_time": (2, 1), "decide_every": 0.1, "target": doubling, "budget": "epochs", "transfer": ["lr"],
}  # fmt: skip


def wrong(rank, world, out):
    """What each wrong argument says."""
    model = network()
    optimizer = optimizer_of("sgd", model)
    ours = torch.Generator().manual_seed(rank)
    said = []
    for arguments in (
        {"shuffle": False, "sampler": torch.utils.data.DistributedSampler(Numbered(), 3, rank)},
        {"generator": ours}, {"drop_last": rank == 0}, {"num_workers": rank}, {"rank": 0, "world_size": 3}, {"rank": 0},
        {"source": "halves"}, {"metric": "adam"}, *({name: value} for name, value in ONE_RANK.items() if rank == 1),
        *({} for _ in ONE_RANK if rank == 0),
    ):  # fmt: skip
        try:
            loader_of(model, optimizer, 8, **arguments)
        except ValueError as error:
            said.append(str(error))
    try:
        GlobalBatch(16, micro_batch_size=4, total=1000 + rank)
    except ValueError as error:
        said.append(str(error))
    loader = loader_of(model, optimizer, 8, shuffle=False, sampler=[rank, *range(1, 406)])
    try:
        next(iter(loader))
    except ValueError as error:
        said.append(str(error))
    other = loader_of(model, optimizer, 8, rank=0, world_size=1)
    try:
        other.load_state_dict(loader.state_dict())
    except ValueError as error:
        said.append(str(error))
    return said


def memory(rank, world, out):
    """A run that would grow to 64 a rank, where rank 1 has memory for 19: each rank tries it before it grows."""
    device = SimulatedMemory((100 if rank == 0 else 25) * 1000)
    training_run.memory_of = lambda *_: device
    inner = network()
    model = DistributedDataParallel(inner)
    optimizer = optimizer_of("sgd", model)
    rows = OnDevice(inner, device, per_sample=1000, fixed=1000).rows
    loader = loader_of(
        model, optimizer, 8, target=doubling, max_batch_size=64, epochs=3, step_time=None, batch_loss=batch_loss
    )
    seen = train(loader, model, optimizer, epochs=3)
    return {**seen, "last": flat(model), "history": loader.history.records, "rows": rows}


PROGRAMS = {
    "memory": memory,
    "ddp": lambda *a: grown(*a, lr_scaling="linear"),
    "adamw": lambda *a: grown(*a, name="adamw", batch_loss=batch_loss),
    "by hand": lambda *a: grown(*a, way="by hand"),
    "closure": closure,
    "accumulated": lambda *a: grown(*a, parts=2, batch_loss=batch_loss),
    "static": lambda *a: grown(*a, way="static"),
    "unused": lambda *a: grown(*a, way="unused"),
    "compressed": lambda *a: grown(*a, way="compressed"),
    "fsdp": lambda *a: grown(*a, way="fsdp", lr_scaling="linear"),
    "fsdp groups": lambda *a: grown(*a, way="fsdp", name="groups", batch_loss=batch_loss),
    "fsdp accumulated": lambda *a: grown(*a, way="fsdp", parts=2),
    "fsdp each": lambda *a: grown(*a, way="fsdp each", parts=2),
    "hybrid": lambda *a: grown(*a, way="hybrid"),
    "shards": shards,
    "global batch": global_batch,
    "global batch ddp": lambda *a: global_batch(*a, way="ddp"),
    "real clock": real_clock,
    "scaled": scaled,
    "ahead": ahead,
    "checkpoint": checkpoint,
    "shares": shares,
    "shares, workers": lambda *a: shares(*a, num_workers=1),
    "shares, accumulated": lambda *a: shares(*a, parts=2),
    "wrong": wrong,
}


def main(programs: str, rank: int, world: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store", rank=rank, world_size=world, timeout=timedelta(seconds=30)
    )
    for name in programs.split(";"):
        torch.manual_seed(rank)  # (as who wants each rank to have dropout of its own)
        torch.save(PROGRAMS[name](rank, world, out), Path(out) / f"{name} {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # (gloo's threads now and then abort a process that has done all it had to)
