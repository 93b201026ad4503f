"""A CUDA device that a CPU can run: `torch.cuda` on a virtual clock, with queued work and a caching allocator.

    with FakeCuda() as cuda:
        cuda.place(model)              # model.cuda()
        cuda.queue(0.003)              # the host launches a kernel of 3 ms and goes on at once
        ...

Inside of the context the parts of `torch.cuda` that adaptbs calls, and its host clock, are this device's. Tensors made
from tensors of the device are the device's too: they say so in `.device`, take blocks of its memory, and a value that
is read or copied to the host counts in `waits`. Values are computed on the CPU.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.allocator import CachingAllocator
from tests.helpers.waits import Waits, tensors_in

LAUNCH = 1e-5  # seconds of the host for a kernel
KERNEL = 2e-6  # seconds of the device for an operation on its tensors
FACTORIES = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
             "tensor", "zeros")  # fmt: skip
READS = (torch.Tensor.tolist, torch.Tensor.numpy)  # which torch does on a CPU without any operation
GiB = 1 << 30


class CudaTensor(Tensor):
    """Says that it lies on CUDA. Its values lie on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", self.__dict__.get("_index", 0)))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return self.__dict__.get("_index", 0)


class CudaParameter(nn.Parameter):
    """The same for a parameter, which stays the same object where a model is moved, as on CUDA."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", self.__dict__.get("_index", 0)))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return self.__dict__.get("_index", 0)


class Stream:
    """Works through what is queued, one after another."""

    def __init__(self) -> None:
        self.free_at = 0.0  # seconds of the virtual clock


class FakeCuda:
    """One machine's CUDA devices.

    Args:
        total: bytes of each device.
        devices: how many there are.
        integrated: True where device and host share their memory.
        expandable: True for expandable segments.
        kernels: True to queue a kernel for each operation on the device's tensors. Otherwise only `queue` takes time.

    Attributes:
        now: seconds of the host's virtual clock.
        allocators: the memory of each device.
        waits: counts where the host waits, with `waits.found`; synchronisations count too.
        to_host: bytes copied from the device to the host.
        leaving: True while a tensor is copied to the host.
        events: timing events made so far.
    """

    def __init__(
        self,
        total: int = 8 * GiB,
        devices: int = 1,
        *,
        integrated: bool = False,
        expandable: bool = False,
        kernels: bool = True,
    ) -> None:
        self.now, self.to_host, self.events = 0.0, 0, 0
        self.integrated, self.kernels, self.index = integrated, kernels, 0
        self.allocators = [CachingAllocator(total, expandable=expandable) for _ in range(devices)]
        self.waits, self.leaving = Waits(self.holds, copies=False), False
        self._streams = [Stream() for _ in range(devices)]
        self._current = dict(enumerate(self._streams))
        self._random = [torch.Generator().manual_seed(i) for i in range(devices)]
        self._storages: dict[int, int] = {}  # of the device's tensors, with their bytes
        self._patches = ExitStack()

    @property
    def memory(self) -> CachingAllocator:
        return self.allocators[self.index]

    def __enter__(self) -> FakeCuda:
        for name, replaced in self.functions().items():
            self._patches.enter_context(patch.object(torch.cuda, name, replaced))
        for name in FACTORIES:
            self._patches.enter_context(patch.object(torch, name, self._factory(getattr(torch, name))))
        for name, method in self._methods().items():
            self._patches.enter_context(patch.object(torch.Tensor, name, method))
        clock = types.SimpleNamespace(perf_counter=lambda: self.now)
        self._patches.enter_context(patch("adaptbs.timing.device_clock.time", clock))
        self._patches.enter_context(_Moves(self))
        self._patches.enter_context(_Made(self))
        self._patches.enter_context(self.waits)
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.close()

    def functions(self) -> dict[str, Any]:
        """What stands for the functions of `torch.cuda`, by their names."""
        memory = self._memory
        return {
            "is_available": lambda: True,
            "device_count": lambda: len(self.allocators),
            "current_device": lambda: self.index,
            "get_device_name": lambda device=None: "a test double",
            "get_device_properties": lambda device=None: types.SimpleNamespace(
                total_memory=memory(device).total, is_integrated=int(self.integrated), name="a test double"
            ),
            "Event": lambda enable_timing=False, **_: Event(self, enable_timing),
            "is_current_stream_capturing": lambda: False,
            "current_stream": lambda device=None: self._current[self._index(device)],
            "synchronize": self.synchronize,
            "mem_get_info": lambda device=None: (memory(device).free, memory(device).total),
            "memory_stats": lambda device=None: memory(device).statistics(),
            "memory_allocated": lambda device=None: memory(device).allocated,
            "max_memory_allocated": lambda device=None: memory(device).allocated_peak,
            "memory_reserved": lambda device=None: memory(device).reserved,
            "max_memory_reserved": lambda device=None: memory(device).reserved_peak,
            "reset_peak_memory_stats": lambda device=None: memory(device).reset_peaks(),
            "empty_cache": lambda: [one.release() for one in self.allocators] and None,
            "set_per_process_memory_fraction": self._set_fraction,
            "get_per_process_memory_fraction": lambda device=None: memory(device).fraction,
            "get_rng_state": lambda device="cuda": self._random[self._index(device)].get_state(),
            "set_rng_state": lambda state, device="cuda": self._random[self._index(device)].set_state(state),
        }

    def queue(self, seconds: float, stream: Stream | None = None) -> None:
        """Launch a kernel that takes so long. The host goes on at once."""
        self.now += LAUNCH
        stream = stream or self._current[self.index]
        if stream not in self._streams:
            self._streams.append(stream)
        stream.free_at = max(stream.free_at, self.now) + seconds

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Make this stream the current one, as `torch.cuda.stream`."""
        before, self._current[self.index] = self._current[self.index], stream
        try:
            yield
        finally:
            self._current[self.index] = before

    def synchronize(self, device: Any = None) -> None:
        """Wait until the device has worked through its queue."""
        self.waits.note("synchronize")
        self.now = max(self.now, *(stream.free_at for stream in self._streams))

    def random(self, device: int) -> float:
        """A random number drawn on a device."""
        return torch.rand((), generator=self._random[device]).item()

    def place(self, module: nn.Module, index: int = 0) -> nn.Module:
        """Move a model to a device, as `module.cuda(index)`: its parameters stay the same objects."""
        for parameter in module.parameters():
            parameter.__class__ = CudaParameter
            parameter._index = index
            self.hold(parameter, index)
        for buffer in module.buffers():
            self.tensor(buffer, index)
        return module

    def tensor(self, tensor: Tensor, index: int = 0) -> Tensor:
        """Make this tensor one of the device's."""
        if type(tensor) is Tensor:
            tensor.__class__ = CudaTensor
            if index:
                tensor._index = index
        self.hold(tensor, index)
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        """True if a tensor lies on a device."""
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._storages

    def hold(self, tensor: Tensor, index: int = 0) -> None:
        """Take memory for a tensor, until its storage is gone."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            size, allocator = storage.nbytes(), self.allocators[index]
            block = allocator.take(size)
            self._storages[storage._cdata] = size
            weakref.finalize(storage, self._gone, storage._cdata, allocator, block, size)

    def _factory(self, make: Any) -> Any:
        """The same factory of tensors, which can make them on this device.

        A mode would not do: torch switches modes off within a function, as in hooks that a backward pass calls.
        """

        def made(*args: Any, **kwargs: Any) -> Tensor:
            device = kwargs.get("device")
            if device is None or torch.device(device).type != "cuda":
                return make(*args, **kwargs)
            if make.__name__ in ("tensor", "as_tensor"):
                self.waits.note("torch.tensor(..., device=...)")
            del kwargs["device"]
            return self.tensor(make(*args, **kwargs), self._index(device))

        return made

    def _methods(self) -> dict[str, Any]:
        """The methods of a tensor that move it between the host and the device."""
        to = torch.Tensor.to

        def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            target, non_blocking = _target(args, kwargs), kwargs.get("non_blocking", False)
            if target is not None and target.type == "cuda":
                return self._to_device(tensor, non_blocking, kwargs.get("dtype"), self._index(target))
            if target is not None and target.type == "cpu" and self.holds(tensor):
                return self._to_host(tensor, non_blocking, kwargs.get("dtype"))
            return to(tensor, *args, **kwargs)

        return {
            "to": moved,
            "cuda": lambda tensor, device=None, non_blocking=False: moved(tensor, "cuda", non_blocking=non_blocking),
            "cpu": lambda tensor: moved(tensor, "cpu"),
            "record_stream": lambda tensor, stream: None,  # memory here is given back at once
        }

    def _to_host(self, tensor: Tensor, non_blocking: bool, dtype: Any) -> Tensor:
        if not non_blocking:
            self.waits.note(f"a copy of {tuple(tensor.shape)} to the host")
        self.to_host += tensor.numel() * tensor.element_size()
        self.leaving = True
        try:
            return torch.ops.aten._to_copy(tensor, dtype=dtype)
        finally:
            self.leaving = False

    def _to_device(self, tensor: Tensor, non_blocking: bool, dtype: Any = None, index: int = 0) -> Tensor:
        if self.holds(tensor):
            return tensor if dtype is None else tensor.to(dtype)
        if not non_blocking:
            self.waits.note(f"a copy of {tuple(tensor.shape)} to the device")
        return self.tensor(tensor.clone() if dtype is None else tensor.to(dtype, copy=True), index)

    def _gone(self, key: int, allocator: CachingAllocator, block: Any, size: int) -> None:
        self._storages.pop(key, None)
        if block is not None:
            allocator.free_block(block, size)

    def _memory(self, device: Any) -> CachingAllocator:
        return self.allocators[self._index(device)]

    def _index(self, device: Any) -> int:
        if device is None:
            return self.index
        if isinstance(device, int):
            return device
        index = torch.device(device).index
        return self.index if index is None else index

    def _set_fraction(self, fraction: float, device: Any = None) -> None:
        if isinstance(device, torch.device) and device.index is None:
            raise ValueError("Expected a torch.device with a specified index or an integer, but got: cuda")  # as torch
        self._memory(device).fraction = fraction


class Event:
    """A timing event, as torch.cuda.Event."""

    def __init__(self, cuda: FakeCuda, enable_timing: bool) -> None:
        cuda.events += 1
        self._cuda, self._timing, self.at = cuda, enable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._cuda._current[self._cuda.index]
        self.at = max(stream.free_at, self._cuda.now)

    def query(self) -> bool:
        return self.at is None or self.at <= self._cuda.now

    def synchronize(self) -> None:
        self._cuda.waits.note("event.synchronize")
        self._cuda.now = max(self._cuda.now, self.at or 0.0)

    def elapsed_time(self, end: Event) -> float:
        if not (self._timing and end._timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self.at is None or end.at is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("CUDA error: device not ready")
        return 1000 * (end.at - self.at)


class _Made(TorchDispatchMode):
    """Tensors made from the device's are the device's."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in(args, kwargs)
        held = [t for t in inputs if self._cuda.holds(t)]
        out = func(*args, **kwargs)
        if held and self._cuda.kernels:
            self._cuda.queue(KERNEL)
        if held and not self._cuda.leaving and not func.__name__.startswith("copy_"):
            index = max(t.__dict__.get("_index", 0) for t in held)
            for made in tensors_in(out):
                if all(made is not t for t in inputs):
                    self._cuda.tensor(made, index)
        return out


class _Moves(TorchFunctionMode):
    """Sees values that are read, and makes tensors on the device that the CPU build of torch would refuse to make."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device and args and isinstance(args[0], int):
            return torch.device("cuda", args[0])
        if func in READS and self._cuda.holds(args[0]):
            self._cuda.waits.note(func.__name__)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda" and func is not torch._C._nn._parse_to:
            made = func(*args, **{**kwargs, "device": "cpu"})
            return self._cuda.tensor(made, self._cuda._index(device))
        return func(*args, **kwargs)


def _target(args: Any, kwargs: Any) -> torch.device | None:
    """The device that `Tensor.to` moves to; None if it moves to none."""
    for given in (*args, kwargs.get("device")):
        if isinstance(given, Tensor):
            return given.device
        if isinstance(given, (str, torch.device)):
            return torch.device(given)
    return None
