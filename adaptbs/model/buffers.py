"""Copies a model's buffers before a pass and restores them. Only those that move are copied at every pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class BufferCopies:
    """The buffers of a model, such as BatchNorm's, and a copy of their values.

    Masks and tables of positions stay as they are in every pass, and may be large. Buffers of modules that have not
    changed between two copies are therefore copied to the host's memory once, and read from there if a pass changes
    them after all.

    Args:
        model: the model. Buffers that are added, removed or replaced are found at the next `take`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._moving_copies: list[Tensor] | None = None  # of each group; None before the first
        self._look_up()

    def take(self) -> None:
        """Copy the values as they are now."""
        if self._identities() != self._known:  # one was added, removed or replaced since
            self._look_up()
        elif self._moving_copies is not None:
            self._sort()
        self._moving_copies = [torch.cat(flat or [b.reshape(-1) for b in buffers]) for buffers, flat in self._alike]

    def restore(self) -> None:
        """Restore the values, and the buffers that a pass added, removed or replaced."""
        assert self._moving_copies is not None
        with torch.no_grad():
            for (buffers, flat), values in zip(self._alike, self._moving_copies, strict=True):
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
        """Find the buffers. All of them may move until two copies have been taken."""
        modules = list(self._model.modules())
        self._found = [(m._buffers, dict(m._buffers)) for m in modules]
        self._known = self._identities()
        seen: set[int] = set()
        self._moving: list[_Buffers] = []
        for module in filter(lambda module: module._buffers, modules):
            own = [b for b in module._buffers.values() if b is not None and id(b) not in seen and _writable(b)]
            seen.update(map(id, own))
            self._moving.append(_Buffers(own, normalises=isinstance(module, nn.modules.batchnorm._NormBase)))
        self._still: list[_Still] = []
        self._moving_copies = None
        self._group()

    def _identities(self) -> list[int]:
        """The ids of all buffers as they are now. Those that were found are kept, so no id is given away again."""
        return [id(buffer) for now, _ in self._found for buffer in now.values()]

    def _sort(self) -> None:
        """Copy the buffers that have not moved since the last copy to the host, and take back those that have."""
        moved = [still for still in self._still if still.has_moved]
        stay = [buffers for buffers in self._moving if not buffers.has_moved]
        if moved or stay:
            self._still = [still for still in self._still if not still.has_moved]
            self._still += [_Still(buffers.buffers) for buffers in stay]
            # A module that has moved once will do so again, even if not in every pass.
            back = [_Buffers(still.buffers, normalises=True) for still in moved]
            self._moving = [buffers for buffers in self._moving if buffers.has_moved] + back
            self._group()

    def _group(self) -> None:
        """Group the moving buffers by device and type.

        Each group is copied at once. One copy for each of a network's many small buffers takes long on a GPU.
        """
        alike: dict[Any, list[Tensor]] = {}
        for buffer in (b for buffers in self._moving for b in buffers.buffers):
            alike.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        # A contiguous buffer is flattened to a view once, here and not in every copy. It is a view of `.data`: autograd
        # does not count its changes, and a graph whose backward pass is still to come may hold the buffer.
        self._alike = [
            (found, [b.data.view(-1) for b in found] if all(b.is_contiguous() for b in found) else None)
            for found in alike.values()
        ]


class _Buffers:
    """The buffers of one module, all of which count as moving if one of them has.

    Args:
        buffers: the tensors.
        normalises: True if they surely move. The kernels of normalisation layers write their running statistics
            without autograd's count.
    """

    def __init__(self, buffers: list[Tensor], *, normalises: bool = False) -> None:
        self.buffers, self._normalises = buffers, normalises
        self._versions = _versions(buffers)

    @property
    def has_moved(self) -> bool:
        return self._normalises or _versions(self.buffers) != self._versions


class _Still(_Buffers):
    """Buffers that have not moved, with a copy in the host's memory."""

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
