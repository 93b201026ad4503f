"""Bytes of live tensors on a CPU, in place of `torch.cuda.max_memory_allocated`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adaptbs.memory.device import Watch


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors that operations return, from when they are made until they are freed.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._now = self.peak = 0
        self._sizes = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not leaf.is_sparse:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def peak_bytes(function: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """The most bytes alive at once while a function runs, beside those of the tensors that were there before."""
    with torch.autograd.set_multithreading_enabled(False), LiveBytes(known) as live:
        function()
    return live.peak


class LiveMemory:
    """A device without a limit whose memory is the live tensors of a context, for trials of a size on a CPU.

    Args:
        known: tensors that were there before, which do not count.
    """

    careful, sees_trials = False, True

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = list(known)

    def limit(self) -> int:
        return 1 << 60

    def in_use(self) -> int:
        return 0

    def peak(self) -> int:
        return 0

    def release(self) -> None:
        return None

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        watch = Watch()
        with torch.autograd.set_multithreading_enabled(False), LiveBytes(self._known) as live:
            yield watch
        watch.saw(live.peak)
