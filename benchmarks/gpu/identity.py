"""A part of the GPU benchmark: training with measurements beside it is the same training, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from benchmarks.gpu.cells import Cell, Setup
from benchmarks.gpu.tasks import START, Task, as_it_is, loss_of, tasks


def bit_identity(setup: Setup) -> Iterator[Cell]:
    """Weights and buffers after a run with adaptbs, against one without: BatchNorm, dropout, a side stream."""
    for name in ("ResNet-50", "GPT-2 small"):
        for stream in ("default stream", *(("side stream",) if setup.device.type == "cuda" else ())):
            yield Cell(f"{name}, {stream}", partial(identity_of, setup, tasks(setup)[name], stream != "default stream"))


def identity_of(setup: Setup, task: Task, aside: bool) -> dict[str, Any]:
    settings = torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        plain, again, ours = (weights(setup, task, adaptive, aside) for adaptive in (False, False, True))
    finally:
        torch.backends.cudnn.deterministic = settings[0]
        torch.use_deterministic_algorithms(settings[1])
    (state, _), (state_again, _), (state_ours, measured) = plain, again, ours
    return {
        "repeats": same(state, state_again),  # otherwise the device is not deterministic, and the next says nothing
        "identical": same(state, state_ours), "measurements": measured,
        "failed": not same(state, state_ours) and same(state, state_again),
    }  # fmt: skip


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def weights(setup: Setup, task: Task, adaptive: bool, aside: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The state after some steps, and how many measurements were made beside them."""
    steps = 5 if setup.quick else 60
    rows = task.rows(setup, steps * START)
    model = task.model(setup)
    if rows.tensors[0].is_floating_point():
        model = nn.Sequential(nn.Dropout(0.1), model)
    optimizer = torch.optim.AdamW(model.parameters(), task.lr)
    common: dict[str, Any] = {
        "shuffle": True, "generator": torch.Generator().manual_seed(0), "collate_fn": as_it_is,
    }  # fmt: skip
    loader: Any = DataLoader(rows, START, **common)
    if adaptive:
        loader = AdaptiveDataLoader(
            rows, START, model=model, optimizer=optimizer, batch_loss=loss_of, epochs=1, overhead=0.3,
            max_batch_size=START, **common,
        )  # fmt: skip
    stream = torch.cuda.Stream(setup.device) if aside else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(setup.device))
    torch.manual_seed(1)
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        for batch in loader:
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    setup.wait()
    made = loader.history.to_dict()["event"].count("measurement") if adaptive else 0
    return {name: value.cpu() for name, value in model.state_dict().items()}, made
