"""Copies a model's buffers before a pass and restores them. Buffers that never change are copied once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class BufferCopies:
    """The buffers of a model, such as BatchNorm's, and a copy of their values.

    Masks and tables of positions are the same in every pass, and may be large. So buffers that have not changed between
    two copies are copied to the host's memory once. They are read from there only if a pass changes them after all.

    Args:
        model: the model. Buffers that are added, removed or replaced are found at the next `take`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: list[Tensor] | None = None  # one for each of `_groups`; None before the first `take`
        self._look_up()

    def take(self) -> None:
        """Copy the values as they are now."""
        if self._identities() != self._known:  # one was added, removed or replaced since
            self._look_up()
        elif self._copies is not None:
            self._sort()
        self._copies = [torch.cat(flat or [b.reshape(-1) for b in buffers]) for buffers, flat in self._groups]

    def restore(self) -> None:
        """Restore the values, and the buffers that a pass added, removed or replaced."""
        assert self._copies is not None
        with torch.no_grad():
            for (buffers, flat), values in zip(self._groups, self._copies, strict=True):
                saved = torch.split(values, [b.numel() for b in buffers])
                if flat is not None:
                    torch._foreach_copy_(flat, list(saved))  # one call, because there may be hundreds
                    continue
                for buffer, value in zip(buffers, saved, strict=True):
                    buffer.data.copy_(value.view(buffer.shape))
            for still in self._still:
                if still.has_moved:
                    for buffer, value in zip(still.buffers, still.values, strict=True):
                        buffer.data.copy_(value)
        for now, found in self._found:
            _put_back(now, found)

    def _look_up(self) -> None:
        """Find the buffers. All of them count as moving until two copies have been taken."""
        modules = list(self._model.modules())
        self._found = [(m._buffers, dict(m._buffers)) for m in modules]
        self._known = self._identities()
        seen: set[int] = set()
        self._moving: list[_ModuleBuffers] = []
        for module in (module for module in modules if module._buffers):
            own = [b for b in module._buffers.values() if b is not None and id(b) not in seen and _writable(b)]
            seen.update(map(id, own))
            # The kernels of normalisation layers write their running statistics without autograd's count.
            normalises = isinstance(module, nn.modules.batchnorm._NormBase)
            self._moving.append(_ModuleBuffers(own, always_moving=normalises))
        self._still: list[_StillBuffers] = []
        self._copies = None
        self._group()

    def _identities(self) -> list[int]:
        """The ids of all buffers as they are now. `_found` keeps the tensors, so no id can be used again."""
        return [id(buffer) for now, _ in self._found for buffer in now.values()]

    def _sort(self) -> None:
        """Move buffers that have not changed since the last copy to the host, and back those that have."""
        moved = [still for still in self._still if still.has_moved]
        stay = [buffers for buffers in self._moving if not buffers.has_moved]
        if moved or stay:
            self._still = [still for still in self._still if not still.has_moved]
            self._still += [_StillBuffers(buffers.buffers) for buffers in stay]
            # A module that has moved once will do so again, even if not in every pass.
            back = [_ModuleBuffers(still.buffers, always_moving=True) for still in moved]
            self._moving = [buffers for buffers in self._moving if buffers.has_moved] + back
            self._group()

    def _group(self) -> None:
        """Group the moving buffers by device and type.

        Each group is copied at once. One copy for each of a network's many small buffers takes long on a GPU.
        """
        by_kind: dict[Any, list[Tensor]] = {}
        for buffer in (b for buffers in self._moving for b in buffers.buffers):
            by_kind.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        # A contiguous buffer is flattened to a view once, here and not in every copy. It is a view of `.data`: autograd
        # does not count its changes, and a graph whose backward pass is still to come may hold the buffer.
        self._groups = [
            (found, [b.data.view(-1) for b in found] if all(b.is_contiguous() for b in found) else None)
            for found in by_kind.values()
        ]


class _ModuleBuffers:
    """The buffers of one module. If one of them has changed, all of them count as moving.

    Args:
        buffers: the tensors.
        always_moving: True if they are known to change, whatever their version counters say.
    """

    def __init__(self, buffers: list[Tensor], *, always_moving: bool = False) -> None:
        self.buffers, self._always_moving = buffers, always_moving
        self._versions = _versions(buffers)

    @property
    def has_moved(self) -> bool:
        return self._always_moving or _versions(self.buffers) != self._versions


class _StillBuffers(_ModuleBuffers):
    """The buffers of a module that has not changed them, with a copy in the host's memory."""

    def __init__(self, buffers: list[Tensor]) -> None:
        super().__init__(buffers)
        self.values = [buffer.detach().to("cpu", copy=True) for buffer in buffers]


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _put_back(buffers: dict[str, Tensor | None], found: dict[str, Tensor | None]) -> None:
    """Remove buffers that a forward pass added, and put back those that it removed or replaced."""
    for name in buffers.keys() - found.keys():
        del buffers[name]
    for name, buffer in found.items():
        if name not in buffers or buffers[name] is not buffer:
            buffers[name] = buffer


def _writable(buffer: Tensor) -> bool:
    """True if each entry has memory of its own. An expanded tensor cannot be written in place."""
    return not any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))
