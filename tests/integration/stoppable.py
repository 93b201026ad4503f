"""A training script that saves all it has after every batch, and may be killed anywhere."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import torch
import torch._dynamo
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from tests.integration.training import Numbered, adaptive, loss_of, network

EPOCHS, START, SAMPLES = 3, 8, 2000
PLACES = ("fetched", "backward", "stepped", "saving", "saved")


def parts(workers: int, epochs: int | None, seed: int = 0, samples: int = SAMPLES, **arguments):
    """Model, optimizer, scheduler and loader of a run whose batch grows by what it measures."""
    torch.manual_seed(seed)
    model = network(4)
    optimizer = AdamW(model.parameters(), 1e-3)
    scheduler = OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * -(-samples // START))
    # Forked workers see that their parent was killed, and end; those of a fork server would not.
    processes = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    loader = adaptive(
        Numbered(samples), model, optimizer, START, scheduler=scheduler, epochs=epochs, **processes,
        overhead=0.3, step_time=(4e-3, 1e-6), max_batch_size=32, source="halves", **arguments,
    )  # fmt: skip
    return model, optimizer, scheduler, loader


def save(path: Path, run, seen: list[list[int]]) -> None:
    state = [*(part.state_dict() for part in run), torch.get_rng_state(), seen]
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def train(path: Path | None, workers: int = 0, doomed: int | None = None, samples: int = SAMPLES):
    """Go on from what lies at `path`, if anything does; weights, indices batch by batch, and history at the end.

    Args:
        path: where a state may lie.
        doomed: save there after each batch, and kill this process without notice at a place and after a number of
            batches that this seed draws; None: go on to the end.
    """
    torch.set_num_threads(1)
    run = model, optimizer, scheduler, loader = parts(workers, EPOCHS, samples=samples)
    seen: list[list[int]] = []
    rng = torch.get_rng_state()
    if path is not None and path.exists():
        *states, rng, seen = torch.load(path)
        for part, state in zip(run, states, strict=True):
            part.load_state_dict(state)
    torch.set_rng_state(rng)
    draw = random.Random(doomed)
    last, place = draw.randint(1, 7), draw.choice(PLACES)

    def come_to(here: str) -> None:
        if doomed is not None and batches == last and here == place:
            os.kill(os.getpid(), signal.SIGKILL)

    batches = 0
    for _ in loader.epochs(EPOCHS):
        for batch in loader:
            batches += 1
            seen.append(batch[2].tolist())
            come_to("fetched")
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            come_to("backward")
            optimizer.step()
            scheduler.step()
            come_to("stepped")
            if path is not None and doomed is not None:
                path.with_suffix(".new").write_bytes(b"half a file")
                come_to("saving")
                save(path, run, seen)
            come_to("saved")
    return outcome(model, seen, loader)


def outcome(model, seen: list[list[int]], loader):
    """What two runs are compared by."""
    loader.state_dict()  # (takes in the last measurements, which no decision came to)
    return model.state_dict(), seen, loader.history.to_dict()


def write_result(path: Path, result: Path, workers: int, doomed: int | None) -> None:
    """For a process of its own."""
    done = train(path, workers, doomed)
    torch.save(done, result)
