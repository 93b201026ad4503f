"""Parts of the GPU benchmark: training at the edge of memory, and the words in which libraries say that it ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptbs import AdaptiveDataLoader
from adaptbs.memory.recovery import is_out_of_memory
from benchmarks.gpu.cells import Cell, LeftOut, Setup
from benchmarks.gpu.memory import give_back
from benchmarks.gpu.models import Case, batch_loss, cases
from tests.helpers.allocator import MiB
from tests.helpers.cuda import FakeCuda
from tests.simulated_device import OnDevice

ALLOWED, HUGE = 3 << 30, 1 << 20  # bytes, samples


@contextmanager
def placed(setup: Setup, model: nn.Module, expandable: bool) -> Iterator[nn.Module]:
    """The model on a device of which this process may have ALLOWED bytes; on a CPU on a double of one."""
    if setup.device.type != "cuda":
        with FakeCuda(100 * MiB, expandable=expandable) as cuda:
            OnDevice(cuda.place(model), cuda.memory, MiB)
            yield model
        return
    give_back()
    settings: Callable[[str], None] = torch.cuda.memory._set_allocator_settings
    settings(f"expandable_segments:{expandable}")
    total = torch.cuda.get_device_properties(setup.device).total_memory
    torch.cuda.set_per_process_memory_fraction(ALLOWED / total, setup.device)
    try:
        yield model.to(setup.device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)
        settings("expandable_segments:False")
        give_back()


def near_limit(setup: Setup) -> Iterator[Cell]:
    """500 steps of batches that grow to the edge of memory and vary there, with expandable segments and without."""
    for case in list(cases(setup.quick).values())[: 1 if setup.quick else None]:
        for expandable in (False, True):
            name = f"{case.name}, {'expandable segments' if expandable else 'segments as they are by default'}"
            yield Cell(name, partial(near_limit_of, setup, case, expandable))


def near_limit_of(setup: Setup, case: Case, expandable: bool) -> dict[str, Any]:
    """Allocator retries, bytes reserved and allocated, and errors of a run in an ordinary loop."""
    most, rows = (8, 1_000) if setup.quick else (500, 200_000)
    made = case.data(rows)
    with placed(setup, case.model(torch.device("cpu")), expandable) as model:
        torch.cuda.reset_peak_memory_stats(setup.device)
        before = torch.cuda.memory_stats(setup.device)  # of the cells before, in the same process
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        loader = AdaptiveDataLoader(
            made, 8, shuffle=True, model=model, optimizer=optimizer, batch_loss=batch_loss, epochs=1, budget="epochs",
            target=lambda _, size, progress: HUGE if int(100 * progress) % 5 else max(3 * size // 4, 8),
            max_batch_size=rows // 8, decide_every=0.01,
        )  # fmt: skip
        steps, largest = 0, 0
        for batch in loader:
            batch_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps, largest = steps + 1, max(largest, len(batch[1]))
            if steps >= most:
                break
        stats = torch.cuda.memory_stats(setup.device)
        since = {name: stats[name] - before.get(name, 0) for name in ("num_alloc_retries", "num_ooms")}
        return {
            "steps": steps, "largest_run": largest, "retries": since["num_alloc_retries"], "ooms": since["num_ooms"],
            "reserved": stats["reserved_bytes.all.peak"], "allocated": stats["allocated_bytes.all.peak"],
            "reserved_over_allocated": stats["reserved_bytes.all.peak"] / stats["allocated_bytes.all.peak"],
        }  # fmt: skip


def wordings(setup: Setup) -> Iterator[Cell]:
    """What is said where memory runs out in the allocator, in cuDNN and in cuBLAS, and whether adaptbs knows it."""
    here: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "allocator": lambda: lambda: torch.empty(1 << 40, dtype=torch.uint8, device=setup.device),
        "cuDNN": partial(convolution, setup, False),
        "cuDNN, benchmark": partial(convolution, setup, True),
        "cuBLAS, first use": partial(product, setup),
    }
    for name, make in here.items():
        yield Cell(name, partial(words_of, setup, make))


def words_of(setup: Setup, make: Callable[[], Callable[[], Tensor]]) -> dict[str, Any]:
    if setup.device.type != "cuda":
        raise LeftOut("only a GPU's libraries say it")
    function, held = make(), []
    try:
        for size in (1 << 30, 1 << 26, 1 << 22, 1 << 18, 1 << 12):
            try:
                while True:
                    held.append(torch.empty(size, dtype=torch.uint8, device=setup.device))
            except torch.OutOfMemoryError:
                continue
        try:
            function()
        except Exception as error:
            known = is_out_of_memory(error)
            return {"type": type(error).__name__, "said": str(error)[:1000], "known": known, "failed": not known}
        return {"said": None}
    finally:
        held.clear()
        torch.backends.cudnn.benchmark = False
        give_back()


def convolution(setup: Setup, benchmark: bool) -> Callable[[], Tensor]:
    """A convolution whose input is there already, and whose output and workspace are not."""
    torch.backends.cudnn.benchmark = benchmark
    layer = nn.Conv2d(64, 64, 3, padding=1, device=setup.device)
    x = torch.randn(256, 64, 128, 128, device=setup.device)
    return lambda: layer(x)


def product(setup: Setup) -> Callable[[], Tensor]:
    """A product whose output has room, on a thread's first use of cuBLAS where this is the first cell."""
    a = torch.randn(4096, 4096, device=setup.device)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)
