"""Recognises out-of-memory errors, and takes an optimizer's step again after one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..model import WeightSnapshot, add_note
from .limit import MemoryLimit

log = logging.getLogger(__name__)
T = TypeVar("T")

# Parts of error messages, in lower case. PyTorch's own error class covers only CUDA's allocator.
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
SKIPPED = 16  # first steps that a GradScaler may skip, by which its scale falls from 2**16 to 1
BY_NUMBER = re.compile(r"cuda driver error: 2\b")  # CUDA's driver, by the number of its status


def is_out_of_memory(error: BaseException) -> bool:
    """True if this error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return any(phrase in said for phrase in PHRASES) or BY_NUMBER.search(said) is not None


class SafeStep:
    """Takes an optimizer's steps, and takes one again if memory ran out in it.

    A step can only be taken again if it had changed nothing yet, or if a copy of all that it changes was kept. The
    memory of a step does not grow with the batch. The first step needs the most new memory, because it creates the
    optimizer's state. So everything that a step changes is copied to the host's memory before the first step, and never
    again. No copy is kept if the device's memory cannot be read or if running out ends the process.

    Args:
        optimizer: an object with `state`, torch's or fastai's.
        parameters: returns the parameters that the step changes.
    """

    def __init__(self, optimizer: Any, parameters: Callable[[], Iterable[Tensor]]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._left = SKIPPED  # steps that may still turn out to be the first
        self._tensors: list[Tensor] = []  # all that a step changes
        self._seen: Any = None  # the optimizer's state of one parameter when `_tensors` was made
        self._sizes = (-1, -1)  # of that state, and of the state of all parameters

    def __call__(self, step: Callable[[], T], limit: MemoryLimit) -> T:
        """Take the step.

        Args:
            step: takes it.
            limit: the memory limit of the run.

        Returns:
            The result of `step`.

        Raises:
            Exception: the error of the step, if memory did not run out, or if the step cannot be taken again.
        """
        if limit.memory is not None and limit.memory.careful:
            return step()  # running out ends the process, so nothing can be done after it
        copies = self._left > 0 and limit.memory is not None
        values = WeightSnapshot(self._parameters(), self._optimizer) if copies else None
        before, said = self._versions(), None
        try:
            return step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if values is None and self._versions() != before:
                add_note(error, HALF_WAY)
                raise
            said = str(error)
        finally:
            if self._left:
                # A GradScaler skips steps until its scale has come down. The first one is still to come then.
                self._left = self._left - 1 if self._versions() == before else 0
        if values is not None:
            values.restore()
        limit.release()
        log.warning("memory ran out in the optimizer's step, so the step is taken again: %s", said)
        return step()

    def _versions(self) -> list[int]:
        """The in-place version counters of all tensors that a step changes.

        The tensors are collected again only if the layout of the state has changed, after the first step or after
        `load_state_dict`. With many parameters collecting them takes as long as many operations.
        """
        state = getattr(self._optimizer, "state", {})
        first: Any = next(iter(state.values()), None)
        sizes = (len(first or ()), len(state))
        if first is not self._seen or sizes != self._sizes:
            parameters = list(self._parameters())
            kept = [value for p in parameters for value in state.get(p, {}).values() if isinstance(value, Tensor)]
            self._tensors, self._seen, self._sizes = [*parameters, *kept], first, sizes
        return [tensor._version for tensor in self._tensors]


HALF_WAY = (
    "The optimizer had already changed some weights or state when memory ran out, and adaptbs cannot undo that: go on "
    "from a checkpoint, with a smaller max_batch_size or an optimizer that needs less memory at once (fused=True or "
    "foreach=False)."
)
