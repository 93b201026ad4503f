"""Copies the tensors that a pass may change, and restores them. Those that never change are copied once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_values_of, _memory_of = methodcaller("values"), methodcaller("data_ptr")
_shape_of, _requires_grad_of = attrgetter("shape"), attrgetter("requires_grad")
STAYED = 2  # copies after which a tensor that has not changed is taken to be the same in every pass


class TensorCopies:
    """The tensors of a model that a forward pass may change, and a copy of their values.

    These are buffers, such as BatchNorm's, and frozen parameters: MoCo averages its second encoder in the forward pass,
    and a VQ-VAE its codebook. Of frozen parameters no more are copied than there are trained ones, the smallest first.
    What is larger is the frozen base of a fine-tuned model. Trained parameters keep their values, but for those of an
    embedding with `max_norm`, and those that the pass assigns to `.data`, as a constraint on weights does.

    Masks and tables of positions are the same in every pass, and may be large. So tensors that have not changed after
    `STAYED` copies are copied to the host's memory once. They are read from there only if they change after all.

    Args:
        model: the model. Tensors that are added, removed, replaced or frozen are found at the next `take`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: list[Tensor] | None = None  # one for each of `_groups`; None before the first `take`
        self._trained_memory: list[tuple[Tensor, Tensor]] = []
        self._look_up()

    def take(self, *, trained: bool = True) -> None:
        """Copy the values as they are now.

        Args:
            trained: take note of the memory of trained parameters too. It takes longer than all else if nothing moves.
        """
        if self._identities() != self._known:  # one was added, removed or replaced since
            self._look_up()
        elif self._copies is not None and (self._still or self._unsure):
            self._sort()
        self._copies = [torch.cat(group.flat or [t.reshape(-1) for t in group.tensors]) for group in self._groups]
        self._trained_memory = [(p, p.data) for p in self._trained] if trained else []

    def restore(self) -> None:
        """Restore the values, and the buffers and parameters that a pass added, removed or replaced."""
        assert self._copies is not None
        for now, found in self._found:
            _put_back(now, found)
        self._compare()
        for tensor, memory in (*self._memory, *self._trained_memory):
            set_memory(tensor, memory)
        with torch.no_grad():
            for group, values in zip(self._groups, self._copies, strict=True):
                saved = torch.split(values, group.sizes)
                if group.flat is not None:
                    torch._foreach_copy_(group.flat, list(saved))  # one call, because there may be hundreds
                    continue
                for tensor, value in zip(group.tensors, saved, strict=True):
                    write(tensor.data, value.view(tensor.shape))
            for still in self._still:
                if still.has_moved:
                    for tensor, value in zip(still.tensors, still.values, strict=True):
                        tensor.data.copy_(value)

    def drop(self) -> None:
        """Let go of the memory of trained parameters, which an optimizer may put on another one."""
        self._trained_memory = []

    def _look_up(self) -> None:
        """Find the tensors. All of them count as moving until several copies have been taken."""
        modules = list(self._model.modules())
        self._found = [(now, dict(now)) for m in modules for now in (m._buffers, m._parameters)]
        copied, seen = _frozen(modules) | _renormed(modules), set[int]()
        self._moving: list[_ModuleTensors] = []
        for module in modules:
            candidates = [*module._buffers.values(), *(p for p in module._parameters.values() if id(p) in copied)]
            own = [t for t in candidates if t is not None and id(t) not in seen and is_writable(t)]
            seen.update(map(id, own))
            if own:
                normalises = isinstance(module, nn.modules.batchnorm._NormBase)
                self._moving.append(_ModuleTensors(own, normalises=normalises))
        self._memory = [(tensor, tensor.data) for tensors in self._moving for tensor in tensors.tensors]
        self._copied = [tensor for tensor, _ in self._memory]
        self._dictionaries = [now for now, _ in self._found]
        self._with_tensors = [now for now in self._dictionaries if now]
        self._parameters = _parameters(modules)
        self._trained = [p for p in self._parameters if p.requires_grad and id(p) not in seen and is_writable(p)]
        self._known = self._identities()
        self._still: list[_StillTensors] = []
        self._copies = None
        self._group()

    def _identities(self) -> tuple[list[Any], ...]:
        """The identities of all tensors as they are now. `_found` keeps the tensors, so no id can be used again."""
        # A step that may have to be repeated asks for these, so that they are lists of few things, made without a line
        # of Python for each of them.
        ids = list(map(id, chain.from_iterable(map(_values_of, self._with_tensors))))
        trained = list(map(_requires_grad_of, self._parameters))
        copied = self._copied
        places = [*map(_memory_of, copied), *map(_shape_of, copied)] if copied else []
        return list(map(len, self._dictionaries)), ids, trained, places

    def _sort(self) -> None:
        """Move tensors that have not changed since the last copy to the host, and back those that have."""
        moved = [still for still in self._still if still.has_moved]
        self._unsure = self._compare()
        stay = [tensors for tensors in self._unsure if tensors.stays_at_last()]
        if moved or stay:
            self._still = [still for still in self._still if not still.has_moved]
            self._still += [_StillTensors(tensors.tensors) for tensors in stay]
            # A module that has moved once will do so again, even if not in every pass.
            back = [_ModuleTensors(still.tensors, always_moves=True) for still in moved]
            self._moving = [tensors for tensors in self._moving if tensors not in stay] + back
            self._group()

    def _compare(self) -> list[_ModuleTensors]:
        """Those of the moving tensors that are as they were copied. They are compared until they are known to move."""
        if not (stay := [tensors for tensors in self._unsure if not tensors.has_moved]):
            return []
        copied: dict[int, Tensor] = {}
        for group, values in zip(self._groups, self._copies or [], strict=True):
            copied |= zip(map(id, group.tensors), torch.split(values, group.sizes), strict=True)
        return [tensors for tensors in stay if tensors.are_as(copied)]

    def _group(self) -> None:
        """Group the moving tensors by device and type.

        Each group is copied at once. One copy for each of a network's many small buffers takes long on a GPU. On a CPU
        only those of normalisation layers are restored at once: others may be on memory that is not to be written.
        """
        self._unsure = [tensors for tensors in self._moving if not tensors.always_moves]
        by_kind: dict[Any, list[Tensor]] = {}
        for module in self._moving:
            for tensor in module.tensors:
                at_once = module.normalises or tensor.device.type != "cpu"
                by_kind.setdefault((at_once, tensor.device, tensor.dtype), []).append(tensor)
        # A contiguous tensor is flattened to a view once, here and not in every copy. It is a view of `.data`: autograd
        # does not count its changes, and a graph whose backward pass is still to come may hold the tensor.
        self._groups = [
            _Group(
                tensors,
                [t.data.view(-1) for t in tensors] if at_once and all(t.is_contiguous() for t in tensors) else None,
                [t.numel() for t in tensors],
            )
            for (at_once, *_), tensors in by_kind.items()
        ]


class _Group(NamedTuple):
    """Tensors of one device and type, which are copied at once.

    Attributes:
        tensors: the tensors.
        flat: views of them with one dimension; None if they are not restored at once.
        sizes: numbers of their entries.
    """

    tensors: list[Tensor]
    flat: list[Tensor] | None
    sizes: list[int]


class _ModuleTensors:
    """The tensors of one module. If one of them has changed, all of them count as moving.

    Args:
        tensors: the tensors.
        always_moves: True if they are known to change, whatever their version counters say.
        normalises: True of a normalisation layer, whose kernels write its running statistics uncounted by autograd.
    """

    def __init__(self, tensors: list[Tensor], *, always_moves: bool = False, normalises: bool = False) -> None:
        self.tensors, self.always_moves, self._stayed = tensors, always_moves or normalises, 0
        self.normalises = normalises
        self._versions = _versions(tensors)

    @property
    def has_moved(self) -> bool:
        return self.always_moves or _versions(self.tensors) != self._versions

    def are_as(self, copied: Mapping[int, Tensor]) -> bool:
        """Compare the values with a copy, as autograd does not count what is written by `.data`; waits for the device.

        Args:
            copied: flat copies by the tensors' ids.
        """
        self.always_moves = not all(torch.equal(t.detach().reshape(-1), copied[id(t)]) for t in self.tensors)
        return not self.always_moves

    def stays_at_last(self) -> bool:
        """Count the copies after which nothing has changed. One alone may have been around a pass that restores."""
        self._stayed += 1
        return self._stayed >= STAYED


class _StillTensors(_ModuleTensors):
    """The tensors of a module that has not changed them, with a copy in the host's memory."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.values = [tensor.detach().to("cpu", copy=True) for tensor in tensors]


def set_memory(tensor: Tensor, memory: Tensor) -> None:
    """Put a tensor back on its memory, after an assignment to `.data` or a change of its shape."""
    if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
        tensor.data = memory


def write(memory: Tensor, values: Tensor) -> None:
    """Copy the values. On a CPU nothing is written that is there already: the memory may be a file's, read-only."""
    if memory.device.type != "cpu" or not torch.equal(memory, values):
        memory.copy_(values)


def is_writable(tensor: Tensor) -> bool:
    """True if each entry has memory of its own, which may be written.

    A sparse tensor has none, an expanded one shares it, and one made in inference mode is written there alone.
    """
    if tensor.layout is not torch.strided or tensor.is_inference():
        return False
    return not any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _put_back(tensors: dict[str, Any], found: dict[str, Any]) -> None:
    """Remove buffers or parameters that a forward pass added, and put back those that it removed or replaced."""
    for name in tensors.keys() - found.keys():
        del tensors[name]
    for name, tensor in found.items():
        # A library that shards parameters replaces them for the time of a pass, and puts them back itself.
        if name not in tensors or (tensors[name] is not tensor and _is_plain(tensors[name]) and _is_plain(tensor)):
            tensors[name] = tensor


def _is_plain(tensor: Any) -> bool:
    """False for a subclass of tensors, such as a quantized or a sharded one, which lays out its memory in its way."""
    return tensor is None or type(tensor) in (Tensor, nn.Parameter, nn.Buffer)


def _parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The plain parameters of modules, each once."""
    found = {id(p): p for m in modules for p in m._parameters.values() if p is not None and _is_plain(p)}
    return list(found.values())


def _frozen(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of frozen parameters, of the smallest as many as there are trained ones."""
    parameters, found = _parameters(modules), set[int]()
    left = sum(p.numel() for p in parameters if p.requires_grad)
    for parameter in sorted((p for p in parameters if not p.requires_grad), key=_size):
        left -= parameter.numel()
        if left < 0:
            break
        found.add(id(parameter))
    return found


def _renormed(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of embeddings whose rows are brought to `max_norm` in the forward pass, which rounds them each time."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {id(m.weight) for m in modules if isinstance(m, kinds) and m.max_norm is not None and _is_plain(m.weight)}


def _size(tensor: Tensor) -> int:
    return tensor.numel()
