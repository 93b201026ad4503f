"""Copies the attributes that objects of the user's own classes change in a pass, such as counters."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

OF_TORCH = frozenset(vars(nn.Module()))  # parameters, buffers, hooks and the like, which others take care of
CONTAINERS = (list, dict, set, deque, defaultdict, OrderedDict, Counter)
LARGEST = 4096  # entries of a container that is copied: a vocabulary may have more, and does not change in a pass
LARGEST_TENSOR = 1 << 20  # the same of a tensor of an object that is no module: a trainer may hold a whole data set
DEEPEST = 3  # containers in containers, as for values by mode and by name


class AttributeCopies:
    """The attributes of the user's objects, modules among them, and a copy.

    A loss that keeps the embeddings of earlier batches counts its place in them by an attribute, for instance, and a
    trainer collects what it is going to log. An attribute that a pass has set is set back. One that it has added is
    removed, unless its name is private. What it has changed in place is undone for tensors, and for containers of up to
    `LARGEST` entries, but not for the tensors in these. Of an object that is no module only tensors of up to
    `LARGEST_TENSOR` entries are copied.

    Args:
        owners: the objects. Those whose class is torch's are left alone.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._owners = [each for each in owners if hasattr(each, "__dict__") and _is_the_users(each)]
        self._kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._tensors: dict[int, _TensorCopy] = {}

    def take(self) -> None:
        """Copy the attributes as they are now."""
        self._kept = [(vars(m), {k: v for k, v in vars(m).items() if k not in OF_TORCH}) for m in self._owners]
        values = [value for _, kept in self._kept for value in kept.values()]
        self._contents = [(found, found.copy()) for found in _containers(values)]
        tensors = {
            id(value): value
            for owner, (_, kept) in zip(self._owners, self._kept, strict=True)
            for value in kept.values()
            if _is_to_be_copied(value, of_module=isinstance(owner, nn.Module))
        }
        before = self._tensors
        self._tensors = {key: _copy_of(tensor, before.get(key)) for key, tensor in tensors.items()}

    def restore(self) -> None:
        """Restore the copied attributes."""
        for now, kept in self._kept:
            for name in [name for name in now if name not in kept and name not in OF_TORCH and name[0] != "_"]:
                del now[name]
            now.update(kept)
        for found, copied in self._contents:
            found.clear()  # the same object must stay, since others may hold it
            found.extend(copied) if isinstance(found, list | deque) else found.update(copied)
        for tensor in self._tensors.values():
            tensor.restore()

    def drop(self) -> None:
        """Let go of the copied attributes, which may hold the graph of a step, or its activations."""
        self._kept, self._contents, self._tensors = [], [], {}


class _TensorCopy:
    """A copy of a tensor's values, which stays valid for as long as the tensor is not written to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version
        self._values = tensor.detach().clone()

    @property
    def has_moved(self) -> bool:
        return self.tensor._version != self.version

    def restore(self) -> None:
        if self.has_moved:
            with torch.no_grad():
                self.tensor.data.copy_(self._values)
            self.version = self.tensor._version


def _is_to_be_copied(value: Any, *, of_module: bool) -> bool:
    if not isinstance(value, Tensor) or value.requires_grad or value.is_inference():
        return False
    return of_module or value.numel() <= LARGEST_TENSOR


def _is_the_users(owner: Any) -> bool:
    return not type(owner).__module__.startswith(("torch.", "adaptbs."))


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """The containers among values, and those in them. Each of them comes once."""
    level, seen = list(values), set[int]()
    for _ in range(DEEPEST):
        found = [v for v in level if type(v) in CONTAINERS and len(v) <= LARGEST and id(v) not in seen]
        seen.update(map(id, found))
        yield from {id(v): v for v in found}.values()
        level = [inner for v in found for inner in (v.values() if isinstance(v, dict) else v)]


def _copy_of(tensor: Tensor, before: _TensorCopy | None) -> _TensorCopy:
    if before is not None and before.tensor is tensor and not before.has_moved:
        return before
    return _TensorCopy(tensor)
