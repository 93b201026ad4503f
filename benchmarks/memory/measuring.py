"""What a measured step holds, and what a trial of its size counts: bytes of tensors alive at once, on a CPU.

    python -m benchmarks.memory.measuring

Beside the weights and the batch: a plain step, the first step that is measured as it happens, whose sums are checked,
a later one, and a measurement by halves; and for both sources what `MemoryTrial` counts, which has to be no less. The
result goes to results/measuring_memory.json. It does not depend on the machine's speed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from adaptbs.gradients.halves import HalfBatches
from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.meter import NoiseMeter
from adaptbs.gradients.terms import Unsupported
from adaptbs.memory.trial import MemoryTrial, bytes_of
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.model.batches import slice_batch
from adaptbs.model.modules import has_batch_norm
from benchmarks.common.live_bytes import LiveMemory, peak_bytes
from benchmarks.common.machine import save
from benchmarks.cost.measuring import MODELS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = (64, 512)


def held_and_counted(model: nn.Module, loss: BatchLoss, batch: tuple[torch.Tensor, ...], n: int) -> dict[str, int]:
    """Bytes that each kind of step holds at once, and that a trial counts for each source."""
    known = [*model.parameters(), *batch]

    def peak(step: Callable[[], object]) -> int:
        model.zero_grad()
        found = peak_bytes(step, known)
        model.zero_grad()
        return found

    def counted(choice: str) -> int:
        meter = NoiseMeter(model, loss, choice=choice)
        few = slice_batch(batch, 0, 8)  # as a smaller batch of the run, which is repeated
        trial = MemoryTrial(model, loss, LiveMemory(known), lambda: few, measures=lambda: meter)(n)
        assert trial.peak is not None
        return trial.peak

    def plain() -> None:
        loss(model, batch).backward()

    def by_halves() -> None:
        halves.measure(batch)
        plain()

    def in_step() -> None:
        watch.arm(n)
        try:
            plain()
            watch.norms()
        finally:
            watch.disarm()

    watch, halves = InStep(model), HalfBatches(model, loss)
    rows = {"step": peak(plain)}
    if not has_batch_norm(model):
        with suppress(Unsupported):  # as where the sums of a kernel in bfloat16 are too rough to be checked
            rows["in step, first"] = peak(in_step)
            in_step()  # the second is compared with the gradient as well
            rows |= {"in step": peak(in_step), "in step, counted": counted("in_step")}
    return {**rows, "halves": peak(by_halves), "halves, counted": counted("halves")}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, make in MODELS.items():
        for kind, dtype in DTYPES.items():
            for n in SIZES:
                torch.manual_seed(0)
                model, loss_func, batch = make(n)
                model.to(dtype)
                batch = tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)
                found = held_and_counted(model, BatchLoss(loss_func), batch, n)
                rows.append({
                    "model": name, "dtype": kind, "batch_size": n, "parameters": bytes_of(model.parameters()), **found,
                })  # fmt: skip
                step = found["step"]
                print(f"{name:26s} {kind:9s} {n:4d}", {k: round(v / step, 2) for k, v in found.items()}, flush=True)
    print(save("measuring_memory", {"rows": rows}))


if __name__ == "__main__":
    main()
