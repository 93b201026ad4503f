import pytest
import torch

from adaptbs.memory.limit import MemoryLimit
from adaptbs.memory.pieces import run_in_pieces
from adaptbs.memory.recovery import is_out_of_memory, take_step
from tests.simulated_device import SimulatedMemory

FORMS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 1.96 GiB total capacity)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, other allocations: 3.00 GB)"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
    KeyboardInterrupt(),
    RuntimeError("Expected all tensors to be on the same device"),
]


@pytest.mark.parametrize("error", FORMS, ids=str)
def test_every_form_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_nothing_else_is_taken_for_it(error):
    assert not is_out_of_memory(error)


WORDINGS = {  # by where they come from
    "PyTorch, CUDA's allocator before it had a class": "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0)",
    "PyTorch, CUDA runtime": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "PyTorch, CUDA driver by number": "CUDA driver error: 2",
    "CUDA driver by name": "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "CUDA driver by name alone": "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY",
    "CUDA runtime by name": "cudaMallocAsync returned cudaErrorMemoryAllocation",
    "PyTorch, HIP's allocator": "HIP out of memory. Tried to allocate 2.00 GiB.",
    "PyTorch, HIP runtime": "HIP error: out of memory",
    "HIP runtime by name": "HIP error: hipErrorOutOfMemory",
    "PyTorch, XPU's allocator": "XPU out of memory. Tried to allocate 34.00 MiB.",
    "XPU's unified runtime": "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "PyTorch, MPS's allocator": "MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 9.07 GB)",
    "PyTorch, MPS, one tensor": "Invalid buffer size: 14.19 GB",
    "PyTorch, host on Linux": "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 64 bytes. Error code 12 (Cannot allocate memory)",
    "PyTorch, host on Windows": "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you "
    "tried to allocate 64 bytes.",
    "PyTorch, cuDNN's engines in benchmark mode": "FIND was unable to find an engine to execute this computation",
    "PyTorch, cuDNN's engines": "GET was unable to find an engine to execute this computation",
    "PyTorch, quantized cuDNN": "Unable to find an engine to execute this computation",
    "PyTorch, cuDNN's algorithms before 2.0": "Unable to find a valid cuDNN algorithm to run convolution",
    "cuDNN before 9": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN 9, device": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN 9, host": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN's handle": "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "MIOpen": "miopenStatusAllocFailed",
    "cuBLAS's handle": "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuBLAS's workspace": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul(...)`",
    "hipBLAS": "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "rocBLAS": "rocblas_status_memory_error",
    "cuFFT": "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuSOLVER": "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuSPARSE": "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`",
    "NCCL": "NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'",
    "NCCL before 2.18": "NCCL error: unhandled cuda error. Last error:\nCuda failure 'out of memory'",
    "NCCL's buffers": "ncclUnhandledCudaError: Call to CUDA function failed.\nFailed to CUDA calloc 6291456 bytes",
    "NCCL's buffers, asynchronously": "Last error:\nFailed to CUDA calloc async 2432 bytes",
    "Triton": "Triton Error [CUDA]: out of memory",
    "Triton on HIP": "Triton Error [HIP]:  Code: 2, Message: out of memory",
}
OTHER_WORDINGS = {
    "CUDA, an illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "CUDA, another number": RuntimeError("CUDA driver error: 700"),
    "CUDA, a number that begins alike": RuntimeError("CUDA driver error: 209"),
    "CUDA, no device": RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    "CUDA, a failed launch": RuntimeError("CUDA error: too many resources requested for launch"),
    "HIP, an illegal access": RuntimeError("HIP error: an illegal memory access was encountered"),
    "cuDNN, execution": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cuDNN, arguments": RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    "cuDNN, a graph": RuntimeError("cuDNN Frontend error: [cudnn_frontend] No execution plans support the graph."),
    "cuBLAS, arguments": RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`"),
    "NCCL, a lost rank": RuntimeError("NCCL error: remote process exited or there was a network error"),
    "Triton, a kernel too large": RuntimeError("out of resource: shared memory, Required: 131072"),
    "a shape": RuntimeError("The size of tensor a (16) must match the size of tensor b (8)"),
    "a view": RuntimeError("shape '[4, 2]' is invalid for input of size 6"),
    "an index": IndexError("index out of range in self"),
    "a user's ValueError": ValueError("the cache is out of memory: give a smaller one"),
    "a user's KeyError": KeyError("CUDA out of memory"),
    "a user's OSError": OSError("[Errno 12] Cannot allocate memory"),
}


@pytest.mark.parametrize("source", WORDINGS)
def test_a_library_that_says_it_in_its_own_words(source):
    assert is_out_of_memory(RuntimeError(WORDINGS[source]))


@pytest.mark.parametrize("source", OTHER_WORDINGS)
def test_other_words_are_another_error(source):
    assert not is_out_of_memory(OTHER_WORDINGS[source])


def too_much(more_than: int, samples: int):
    calls, undone = [], []

    def run(pieces: int) -> int:
        calls.append(pieces)
        if -(-samples // pieces) > more_than:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pieces

    return run, calls, undone


def test_what_fits_is_run_once():
    run, calls, undone = too_much(100, 64)
    cap = MemoryLimit()
    assert run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=1) == (1, None)
    assert (calls, undone, cap.largest_run, cap.smallest_failed) == ([1], [], 64, None)


def test_what_does_not_is_halved_until_it_does():
    run, calls, undone = too_much(20, 64)
    cap = MemoryLimit(SimulatedMemory(1))
    assert run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=1) == (4, 16)
    assert (calls, len(undone), cap.memory.released) == ([1, 2, 4], 2, 2)
    assert (cap.smallest_failed, cap.largest_run, cap.piece) == (32, 16, 16)
    assert run_in_pieces(run, 64, cap, undo=lambda: undone.append(1), least=1) == (4, None), "known from here on"
    assert calls == [1, 2, 4, 4]


def test_where_no_piece_fits_the_error_is_the_devices():
    run, calls, undone = too_much(0, 8)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_in_pieces(run, 8, MemoryLimit(), undo=lambda: undone.append(1), least=2)
    assert calls == [1, 2, 4]
    if hasattr(caught.value, "__notes__"):
        assert "no smaller one can be run" in caught.value.__notes__[0]


def test_other_errors_are_not_tried_again():
    def broken(pieces):
        raise ValueError("of the user's")

    with pytest.raises(ValueError, match="of the user's"):
        run_in_pieces(broken, 8, MemoryLimit(), undo=lambda: None, least=1)


def stepping(fail_at: str):
    """An optimizer whose first step runs out before, in the middle of or after its state and weights are changed."""
    w = torch.nn.Parameter(torch.ones(3))
    optimizer, calls = torch.optim.AdamW([w], 0.1, foreach=False), []
    w.grad = torch.ones(3)

    def step():
        calls.append(1)
        if len(calls) == 1:
            if fail_at == "half-way":
                optimizer.step()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return optimizer.step()

    return w, optimizer, step, calls


def stepped_once() -> torch.Tensor:
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    torch.optim.AdamW([w], 0.1, foreach=False).step()
    return w.detach()


@pytest.mark.parametrize("fail_at", ["before", "half-way"])
@pytest.mark.parametrize("new", [True, False])
def test_a_step_is_taken_again(fail_at, new):
    w, optimizer, step, _ = stepping(fail_at)
    cap = MemoryLimit(SimulatedMemory(1))
    if fail_at == "half-way" and not new:
        with pytest.raises(torch.OutOfMemoryError):
            take_step(step, optimizer, [w], cap, new=False)
        return
    take_step(step, optimizer, [w], cap, new=new)
    assert torch.equal(w.detach(), stepped_once())
    assert optimizer.state[w]["step"] == 1
    assert cap.memory.released == 1


def test_a_step_that_runs_out_again_is_an_error():
    w, optimizer, _, _ = stepping("before")

    def step():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        take_step(step, optimizer, [w], MemoryLimit(), new=False)
