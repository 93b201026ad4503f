"""Parts of the GPU benchmark: time to quality of fixed batches and of the adaptive one, and the same in other modes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from adaptbs import AdaptiveDataLoader
from benchmarks.common.rows import Rows
from benchmarks.gpu.cells import Cell, LeftOut, Part, Setup
from benchmarks.gpu.tasks import START, Task, as_it_is, loss_of, tasks

FIXED, SEEDS, LOOKS, HELD_OUT = (64, 256, 1024), 3, 20, 4096
ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class Mode:
    """How a model is run.

    Attributes:
        autocast: makes the context of the forward pass.
        compile: arguments of torch.compile; None where it is not compiled.
        scaler: True for float16's GradScaler.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    compile: dict[str, Any] | None = None
    channels_last: bool = False
    benchmark: bool = False
    scaler: bool = False
    drop_last: bool = False


PLAIN = Mode()


@dataclass
class Looks:
    """Held-out losses on the way, in time that nobody is charged for."""

    setup: Setup
    held_out: Rows
    begin: float = 0.0
    aside: float = 0.0
    curve: list[tuple[float, int, int, float]] = field(default_factory=list)  # seconds, steps, samples, loss

    def start(self) -> None:
        self.setup.wait()
        self.begin = time.perf_counter()

    def look(self, model: nn.Module, steps: int, samples: int) -> None:
        self.setup.wait()
        now = time.perf_counter()
        model.eval()
        with torch.no_grad():
            parts = [tuple(t[rows] for t in self.held_out.tensors) for rows in self._rows()]
            losses = [loss_of(model, part).item() for part in parts]
        model.train()
        self.curve.append((now - self.begin - self.aside, steps, samples, sum(losses) / len(losses)))
        self.aside += time.perf_counter() - now

    def _rows(self) -> tuple[torch.Tensor, ...]:
        device = self.held_out.tensors[0].device
        return torch.arange(len(self.held_out), device=device).split(256)


def time_to_quality(name: str) -> Part:
    """The part of one task: each batch and seed is a cell."""

    def part(setup: Setup) -> Iterator[Cell]:
        task, others = tasks(setup)[name], [size for size in FIXED if size != START]
        for seed in range(1 if setup.quick else SEEDS):
            for rule in (START, ADAPTIVE, *others[: 1 if setup.quick else None]):
                yield Cell(f"{rule}, seed {seed}", partial(run, setup, task, rule, seed))

    return part


def run(
    setup: Setup, task: Task, rule: int | str, seed: int, mode: Mode = PLAIN, samples: int | None = None
) -> dict[str, Any]:
    """Train at a fixed batch or at adaptbs's; the held-out loss along the run."""
    rows, held_out = task.rows(setup, samples), task.rows(setup, 256 if setup.quick else HELD_OUT, held_out=True)
    looks = Looks(setup, held_out)
    net = task.model(setup, seed)
    if mode.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = Rows(rows.tensors[0].contiguous(memory_format=torch.channels_last), rows.tensors[1])
    model = torch.compile(net, **mode.compile) if mode.compile is not None else net
    size = rule if isinstance(rule, int) else START
    k = size / START
    optimizer = torch.optim.AdamW(net.parameters(), task.lr * math.sqrt(k), fused=setup.device.type == "cuda")
    total = task.epochs * -(-len(rows) // size)
    scheduler = OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=total, cycle_momentum=False)
    common: dict[str, Any] = {
        "shuffle": True, "generator": torch.Generator().manual_seed(seed), "collate_fn": as_it_is,
        "drop_last": mode.drop_last,
    }  # fmt: skip
    epochs: Iterable[Iterable[Any]]
    if rule == ADAPTIVE:
        loader: Any = AdaptiveDataLoader(
            rows, START, model=model, optimizer=optimizer, batch_loss=loss_of, autocast=mode.autocast,
            scheduler=scheduler, epochs=task.epochs, **common,
        )  # fmt: skip
        epochs = (loader for _ in loader.epochs(task.epochs))
    else:
        loader = DataLoader(rows, size, **common)
        epochs = repeat(loader, task.epochs)
    scaler = torch.amp.GradScaler(setup.device.type, enabled=mode.scaler)
    steps = seen = 0
    sizes: list[int] = []
    looks.start()
    for batches in epochs:
        for batch in batches:
            with mode.autocast():
                loss = loss_of(model, batch)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
            steps, seen = steps + 1, seen + len(batch[1])
            if not sizes or sizes[-1] != len(batch[1]):
                sizes.append(len(batch[1]))
            share = loader.progress if rule == ADAPTIVE else steps / total
            if share * LOOKS >= len(looks.curve) + 1 and len(looks.curve) < LOOKS - 1:
                looks.look(net, steps, seen)
    looks.look(net, steps, seen)
    return {
        "loss": looks.curve[-1][3], "seconds": looks.curve[-1][0], "steps": steps, "samples": seen,
        "sizes": sizes, "curve": looks.curve,
        **({"noise_scale": repr(loader.noise_scale)} if rule == ADAPTIVE else {}),
        **({"scale": scaler.get_scale()} if mode.scaler else {}),
    }  # fmt: skip


def modes(setup: Setup) -> Iterator[Cell]:
    """The batch of 64 and the adaptive one in bf16, fp16, compiled, channels_last and with cudnn.benchmark."""
    kind, text, image = setup.device.type, tasks(setup)["GPT-2 small"], tasks(setup)["ResNet-50"]
    half = partial(torch.autocast, kind, torch.bfloat16)
    cases = [
        ("GPT-2 small, bf16", text, Mode(half)),
        ("GPT-2 small, bf16, compiled", text, Mode(half, {}, drop_last=True)),
        ("GPT-2 small, bf16, reduce-overhead", text, Mode(half, {"mode": "reduce-overhead"}, drop_last=True)),
        ("ResNet-50, bf16, channels_last, cudnn.benchmark", image, Mode(half, channels_last=True, benchmark=True)),
        ("ResNet-50, fp16 with a scaler", image, Mode(partial(torch.autocast, kind, torch.float16), scaler=True)),
    ]  # fmt: skip
    for name, task, mode in cases:
        for rule in (START, ADAPTIVE):
            yield Cell(f"{name}: {rule}", partial(in_mode, setup, task, rule, mode))


def in_mode(setup: Setup, task: Task, rule: int | str, mode: Mode) -> dict[str, Any]:
    """A run in a mode, with how often it was compiled and how many CUDA graphs were captured."""
    if setup.quick and mode.compile is not None:
        if mode.compile:
            raise LeftOut("there are no CUDA graphs on a CPU")
        mode = replace(mode, compile={"backend": "eager"})  # compiling takes longer than all else of the quick form
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = mode.benchmark
    try:
        counted = counters() if mode.compile is not None else None
        came = run(setup, task, rule, 0, mode, task.samples if setup.quick else task.samples // 2)
    finally:
        torch.backends.cudnn.benchmark = before
    return came | ({"compiler": counters(counted)} if counted is not None else {})


def counters(before: dict[str, int] | None = None) -> dict[str, int]:
    """Counts of the compiler: graphs, graph breaks, CUDA graphs that were left out; since `before` if given."""
    from torch._dynamo.utils import counters as found

    now = {f"{group}.{name}": int(n) for group in ("stats", "inductor") for name, n in found[group].items()}
    return {name: n - (before or {}).get(name, 0) for name, n in now.items()}


def seconds_to(curve: list[list[float]], loss: float) -> float | None:
    """Seconds at which a run first came to a held-out loss, linear between looks; None if it never did."""
    before: tuple[float, float] | None = None
    for seconds, _, _, now in curve:
        if now <= loss:
            if before is None:
                return seconds
            share = (before[1] - loss) / max(before[1] - now, 1e-12)
            return before[0] + share * (seconds - before[0])
        before = seconds, now
    return None


def compared(cells: dict[str, Any], slack: float = 0.005) -> dict[str, dict[str, float | None]]:
    """By rule: mean loss at the end, and mean seconds to the loss that a fixed 64 ends at, times 1 + `slack`."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, came in cells.items():
        if "result" in came:
            runs.setdefault(name.split(",")[0], []).append(came["result"])
    if str(START) not in runs:
        return {}
    aim = (1 + slack) * sum(run["loss"] for run in runs[str(START)]) / len(runs[str(START)])
    table: dict[str, dict[str, float | None]] = {}
    for rule, found in runs.items():
        took = [seconds_to(run["curve"], aim) for run in found]
        reached = [seconds for seconds in took if seconds is not None]
        table[rule] = {
            "loss": sum(run["loss"] for run in found) / len(found), "reached": len(reached) / len(found),
            "seconds": sum(run["seconds"] for run in found) / len(found),
            "seconds_to_64": sum(reached) / len(reached) if reached else None,
        }  # fmt: skip
    return table
