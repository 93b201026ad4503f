"""The trainers' adapters read no value of a tensor between decisions, which on a GPU would be waited for."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.readings import waits_outside_of_readings
from tests.helpers.waits import ELSEWHERE, Waits

NOT_MEANT = (
    ELSEWHERE,
    "super().",  # the Trainer itself, such as its loss where it logs
    " step(m",  # its training_step()
    "hyperparameters/bias_correction.py",  # steps counted on the host; tests/integration/test_cuda_loops.py has others
    "model/tensors.py",  # in the first passes of a run: which tensors a pass leaves as they are
    "model/values.py",  # the same of tensors that are attributes
    "gradients/coupling.py",  # once in a run: what kind of loss this is
    "compute_loss(",  # masks that the model itself reads; and once in a run, whether the loss divides by its items
)


def is_a_value(tensor: torch.Tensor) -> bool:
    """True for a tensor that would be the device's: what is computed is a float or a truth, unlike indices or seeds."""
    return tensor.is_floating_point() or tensor.dtype == torch.bool


def with_accelerate(out: str, by: str):
    pytest.importorskip("accelerate", reason="needs accelerate: `make trainers` runs it in .venv-trainers")
    from tests.integration.trainers import accelerate_programs as programs

    parts = 2 if by == "accumulated" else 1
    precision = {"configuration": {"mixed_precision": "bf16"}} if by == "bfloat16" else {}
    try:
        found = programs.trained("adaptive", parts=parts, clip=1.0, **precision, **programs.growing(1, parts))
    finally:
        programs.forget_accelerate()
    return found["history"]


def with_lightning(out: str, by: str):
    pytest.importorskip("lightning", reason="needs lightning: `make trainers` runs it in .venv-trainers")
    from tests.integration.trainers import lightning_programs as programs

    parts = 2 if by == "accumulated" else 1
    callback = programs.growing(parts * programs.BATCH)
    precision = {"precision": "bf16-mixed"} if by == "bfloat16" else {}
    programs.fitted(callback, accumulate_grad_batches=parts, gradient_clip_val=0.5, **precision)
    return list(callback.history)


def with_transformers(out: str, by: str):
    pytest.importorskip("transformers", reason="needs transformers: `make trainers` runs it in .venv-trainers")
    from tests.integration.trainers import transformers_programs as programs

    parts = 2 if by == "accumulated" else 1
    given = {"bf16": True} if by == "bfloat16" else {}
    try:
        growing = programs.growing(parts * programs.BATCH, by_accumulation=parts > 1)
        run = programs.Run(out, growing, gradient_accumulation_steps=parts, **given).train()
    finally:
        programs.forget_accelerate()
    return list(run.trainer.adaptive.history)


@pytest.mark.parametrize("by", ["plain", "accumulated", "bfloat16"])
@pytest.mark.parametrize("trainer", [with_accelerate, with_lightning, with_transformers])
def test_an_adapter_reads_nothing_between_decisions(trainer, by, tmp_path, monkeypatch):
    with Waits(is_a_value, copies=False) as waits:
        outside = waits_outside_of_readings(waits, monkeypatch)
        history = trainer(str(tmp_path), by)
    events = [record["event"] for record in history]
    assert events.count("measurement") >= 8 and events.count("decision") >= 4
    assert max(record["batch_size"] for record in history) > min(record["batch_size"] for record in history)
    read = {line for what, line in outside if not what.startswith("a copy")}  # from one kind of tensor to another
    assert {line for line in read if not any(known in line for known in NOT_MEANT)} == set()
