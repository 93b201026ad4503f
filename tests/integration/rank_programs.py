"""What each process of tests/integration/test_ranks.py runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from adaptbs import AdaptiveDataLoader
from adaptbs.loader import AdaptedLoader, LoopFacts
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
    return torch.cat([p.detach().flatten() for p in model.parameters()])


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
    model = network()
    model = DistributedDataParallel(model) if way == "ddp" else model
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
    return {"whole": whole, "rest": rest, "last": last, "resumed": flat(model)}


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


def wrong(rank, world, out):
    """What each wrong argument says."""
    model = network()
    optimizer = optimizer_of("sgd", model)
    ours = torch.Generator().manual_seed(rank)
    said = []
    for arguments in (
        {"shuffle": False, "sampler": torch.utils.data.DistributedSampler(Numbered())},
        {"generator": ours}, {"drop_last": rank == 0}, {"num_workers": rank}, {"rank": 0, "world_size": 3}, {"rank": 0},
        {"source": "halves"}, {"metric": "adam"},
    ):  # fmt: skip
        try:
            loader_of(model, optimizer, 8, **arguments)
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
