"""Counts where the host would wait for a CUDA device, on a machine without one.

The "meta" device stands for CUDA: it holds no values, so reading one raises, and a copy between it and the host that
CUDA would wait for is counted. The tensors of `FakeCuda` hold values, and count alike.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import adaptbs

PACKAGE = f"{Path(adaptbs.__file__).parent}{os.sep}"  # a clone's folder may have its name, too
ELSEWHERE = "outside of adaptbs"
READS = ("_local_scalar_dense", "nonzero", "_unique", "masked_select", "is_nonzero", "equal")  # need the values


def tensors_in(*nested: Any) -> list[Tensor]:
    return [item for item in tree_flatten(nested)[0] if isinstance(item, Tensor)]


def on_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"


class Waits(TorchDispatchMode):
    """A context that lists what the host would wait for.

    Args:
        on_device: True for a tensor that stands for one of the device's.
        copies: True to count copies from one device to the other here. `FakeCuda` counts them where they are asked for.

    Attributes:
        found: what was waited for, and the line of adaptbs that asked for it.
    """

    def __init__(self, on_device: Callable[[Tensor], bool] = on_meta, *, copies: bool = True) -> None:
        super().__init__()
        self._copies = copies
        self.found: list[tuple[str, str]] = []
        self._on_device, self._factories = on_device, _Factories(self)

    def __enter__(self) -> Waits:
        self._factories.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._factories.__exit__(*error)

    def note(self, said: str) -> None:
        lines = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        line = lines[-1] if lines else None
        self.found.append((said, f"{line.filename}:{line.lineno} {line.line}" if line else ELSEWHERE))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, of = func.__name__, self._on_device
        tensors = tensors_in(args, kwargs)
        if name.startswith("_to_copy") and self._copies:
            to_device = torch.device(kwargs.get("device") or args[0].device).type != "cpu"
            if of(args[0]) != to_device and not kwargs.get("non_blocking"):
                self.note(f"a copy of {tuple(args[0].shape)} {'to the device' if to_device else 'to the host'}")
            if args[0].device.type == "meta" and not to_device:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)  # meta has no values
        elif name.startswith("copy_") and of(args[0]) != of(args[1]):
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            if blocking:
                self.note(f"a copy of {tuple(args[1].shape)} in place")
        elif name.startswith(READS) and any(map(of, tensors)):
            self.note(name)
        elif name.startswith("where") and not of(args[0]) and any(map(of, tensors)):
            self.note("where: the condition lies on the host and is copied to the device")
        return func(*args, **kwargs)


class _Factories(TorchFunctionMode):
    """Counts `torch.tensor(number, device=...)`, whose number is copied from memory that CUDA waits for."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self._waits.note("torch.tensor(..., device=...)")
        return func(*args, **kwargs)
