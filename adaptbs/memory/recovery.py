"""Tells out-of-memory errors from other errors, and takes an optimizer's step again after one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..model import WeightSnapshot, add_note
from .limit import MemoryLimit

log = logging.getLogger(__name__)
T = TypeVar("T")

# Fragments of lower-case messages of builds and libraries. PyTorch's own error class covers CUDA's allocator only.
PHRASES = (
    "out of memory",  # CUDA, HIP, XPU, MPS, NCCL, Triton; the plain RuntimeError of older builds
    "can't allocate memory",  # the host's allocator on Linux and macOS
    "not enough memory: you tried to allocate",  # the host's allocator on Windows
    "invalid buffer size: ",  # MPS, of a tensor larger than its largest buffer
    "error_out_of_memory",  # CUDA's driver, by name
    "cudaerrormemoryallocation",
    "hiperroroutofmemory",
    "error_out_of_device_memory",  # XPU's unified runtime and Level Zero
    "error_out_of_host_memory",
    "failed to cuda calloc",  # NCCL and RCCL, for their buffers
    "cudnn_status_alloc_failed",
    "device_allocation_failed",  # cuDNN from 9 on
    "host_allocation_failed",
    "cudnn_status_not_initialized",
    "unable to find an engine to execute this computation",  # PyTorch, once memory ran out with each plan of cuDNN
    "unable to find a valid cudnn algorithm to run convolution",  # the same in older versions
    "miopenstatusallocfailed",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # from cublasCreate if no memory is left for its handle
    "hipblas_status_alloc_failed",
    "rocblas_status_memory_error",
    "cufft_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
)
BY_NUMBER = re.compile(r"cuda driver error: 2\b")  # CUDA's driver, by the number of its status


def is_out_of_memory(error: BaseException) -> bool:
    """True if this error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return any(phrase in said for phrase in PHRASES) or BY_NUMBER.search(said) is not None


def take_step(
    step: Callable[[], T], optimizer: Any, parameters: Sequence[Tensor], limit: MemoryLimit, *, new: bool
) -> T:
    """Take an optimizer's step, and take it again if memory ran out in it.

    The step can only be taken again if it had changed nothing yet, or if a copy of all that it changes was kept.

    Args:
        step: takes the step.
        optimizer: an object with `state`, torch's or fastai's.
        parameters: the parameters that the step changes.
        limit: the memory limit of the run.
        new: True if memory has not held such a step before. Then a copy of all that the step changes is kept in the
            host's memory. No copy is kept if the device's memory cannot be read or if running out ends the process.

    Returns:
        The result of `step`.

    Raises:
        Exception: the error of the step, if memory did not run out, or if the step cannot be taken again.
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
    log.warning("memory ran out in the optimizer's step, so the step is taken again: %s", said)
    return step()


HALF_WAY = (
    "The optimizer had already changed some weights or state when memory ran out, and adaptbs cannot undo that: go on "
    "from a checkpoint, with a smaller max_batch_size or an optimizer that needs less memory at once (fused=True or "
    "foreach=False)."
)


def _versions(parameters: Sequence[Tensor], optimizer: Any) -> list[int]:
    """The in-place version counters of all tensors that a step changes."""
    state = getattr(optimizer, "state", {})
    kept = [value for p in parameters for value in state.get(p, {}).values() if isinstance(value, Tensor)]
    return [tensor._version for tensor in (*parameters, *kept)]
