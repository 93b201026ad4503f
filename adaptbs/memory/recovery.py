"""Tells running out of memory from other errors, and goes on: in smaller pieces, or by taking a step again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..model import WeightSnapshot, add_note
from .limit import MemoryLimit

log = logging.getLogger(__name__)
T = TypeVar("T")

# What builds and libraries say, in small letters; PyTorch's own class of error stands for CUDA's allocator only.
PHRASES = (
    "out of memory",  # CUDA, HIP, XPU, MPS; the plain RuntimeError of older builds
    "can't allocate memory",  # the host's allocator
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # cublasCreate where no memory is left for its handle
    "cudnn_status_not_initialized",
    "cufft_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cuda driver error: 2",  # cudaErrorMemoryAllocation, by number
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is memory that ran out, rather than anything else that went wrong."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return any(phrase in said for phrase in PHRASES)


def take_step(
    step: Callable[[], T], optimizer: Any, parameters: Sequence[Tensor], limit: MemoryLimit, *, new: bool
) -> T:
    """An optimizer's step; once more where memory ran out in it and nothing had been changed, or can be changed back.

    Args:
        step: takes it.
        optimizer: with `.state`, torch's or fastai's.
        parameters: that it changes.
        limit: of the device's memory.
        new: whether memory has not held such a step before: then a copy of all it changes is kept in the host's memory.
    """
    copies = new and limit.memory is not None and not limit.memory.careful
    values = WeightSnapshot(parameters, optimizer) if copies else None
    before, said = _versions(parameters, optimizer), None
    try:
        return step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if values is None and _versions(parameters, optimizer) != before:
            add_note(error, HALF_WAY)
            raise
        said = str(error)
    if values is not None:
        values.restore()
    limit.release()
    log.warning("memory ran out in the optimizer's step, which is taken again: %s", said)
    return step()


HALF_WAY = (
    "The optimizer had changed some of its weights or state when memory ran out, which cannot be taken back: go on "
    "from a checkpoint, with a smaller max_batch_size, or let it need less at once (fused=True or foreach=False)."
)


def _versions(parameters: Sequence[Tensor], optimizer: Any) -> list[int]:
    """How often each tensor that a step changes has been changed in place."""
    state = getattr(optimizer, "state", {})
    kept = [value for p in parameters for value in state.get(p, {}).values() if isinstance(value, Tensor)]
    return [tensor._version for tensor in (*parameters, *kept)]
