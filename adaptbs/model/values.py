"""Copies what a pass may change in place: containers, tensors and generators of random numbers."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .tensors import STAYED, is_writable, set_memory, write

CONTAINERS = (list, dict, set, deque, defaultdict, OrderedDict, Counter)
LARGEST = 4096  # entries of a container that is copied: a vocabulary may have more, and does not change in a pass
LARGEST_TENSOR = 1 << 20  # the same of a tensor of an object that is no module: a trainer may hold a whole data set
DEEPEST = 3  # containers in containers, as for values by mode and by name


class ValueCopies:
    """Values, and a copy of what they hold.

    Containers of up to `LARGEST` entries get back their entries, longer lists their length. Tensors in containers are
    not copied.
    """

    def __init__(self) -> None:
        self._contents: list[tuple[Any, Any]] = []
        self._long: list[tuple[list[Any], int]] = []
        self._tensors: dict[int, _TensorCopy] = {}
        self._generators: list[tuple[Any, Any]] = []

    def take(self, values: list[Any], tensors: Iterable[Tensor]) -> None:
        """Copy what these values hold as it is now, and these tensors."""
        found = list(_containers(values))
        self._contents = [(each, each.copy()) for each in found if len(each) <= LARGEST]
        self._long = [(each, len(each)) for each in found if len(each) > LARGEST]
        before = self._tensors
        self._tensors = {id(each): _copy_of(each, before.get(id(each))) for each in tensors}
        self._generators = [(each, state_of(each)) for each in values if is_generator(each)]

    def restore(self) -> None:
        """Restore the copied values in place, as others may hold the same objects."""
        for found, copied in self._contents:
            found.clear()
            found.extend(copied) if isinstance(found, list | deque) else found.update(copied)
        for long, length in self._long:
            del long[length:]
        for tensor in self._tensors.values():
            tensor.restore()
        for generator, state in self._generators:
            set_state(generator, state)

    def drop(self) -> None:
        """Let go of the copies, which may hold the graph of a step, or its activations."""
        self._contents, self._long, self._tensors, self._generators = [], [], {}, []


def is_to_be_copied(value: Any, *, of_module: bool) -> bool:
    """True for a tensor that a pass may write to, unless it is a large one of an object that is no module."""
    if not isinstance(value, Tensor) or value.requires_grad:
        return False
    return is_writable(value) and (of_module or value.numel() <= LARGEST_TENSOR)


def is_trained(value: Any) -> bool:
    """True for a tensor that a backward pass gives a gradient."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_leaf


def is_generator(value: Any) -> bool:
    """True for a generator of random numbers, torch's, Python's or NumPy's."""
    # NumPy's classes are told by their module, as to name them would load it.
    return isinstance(value, torch.Generator | random.Random) or (
        type(value).__module__.startswith("numpy.random.") and type(value).__name__ in ("Generator", "RandomState")
    )


def state_of(generator: Any) -> Any:
    """The state of a generator of random numbers."""
    bits = getattr(generator, "bit_generator", None)  # of NumPy's newer one
    if bits is not None:
        return bits.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_state(generator: Any, state: Any) -> None:
    """Set the state that `state_of` returned."""
    bits = getattr(generator, "bit_generator", None)
    if bits is not None:
        bits.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


class _TensorCopy:
    """A copy of a tensor's values, which stays valid for as long as the tensor is not written to.

    Autograd does not count what is written by `.data`. So the values are compared, until they have stayed for `STAYED`
    copies.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version, self._memory, self._stayed = tensor, tensor._version, tensor.data, 0
        self._values = tensor.detach().clone()

    @property
    def _is_written(self) -> bool:
        """True if it was written to, or put on other memory, as far as is counted."""
        tensor, memory = self.tensor, self._memory
        return (
            tensor._version != self._version or tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape
        )

    def stays(self) -> bool:
        """Count the copies after which nothing has changed, and return True; False if it has changed."""
        stays = not self._is_written and (self._stayed >= STAYED or torch.equal(self._memory, self._values))
        self._stayed += stays
        return stays

    def restore(self) -> None:
        if self._stayed < STAYED or self._is_written:
            set_memory(self.tensor, self._memory)
            with torch.no_grad():
                write(self._memory, self._values)
            self._version = self.tensor._version


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """The containers among values, and those in them, but of long ones only lists. Each of them comes once."""
    level, seen = list(values), set[int]()
    for _ in range(DEEPEST if level else 0):
        found = [v for v in level if type(v) in CONTAINERS and id(v) not in seen]
        found = [v for v in found if len(v) <= LARGEST or type(v) is list]
        seen.update(map(id, found))
        yield from {id(v): v for v in found}.values()
        short = [v for v in found if len(v) <= LARGEST]
        level = [inner for v in short for inner in (v.values() if isinstance(v, dict) else v)]


def tensors_in(values: Iterable[Any], deepest: int = DEEPEST) -> Iterator[Tensor]:
    """The tensors among values, and in containers and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif deepest and isinstance(value, list | tuple | deque | dict):
            yield from tensors_in(value.values() if isinstance(value, dict) else value, deepest - 1)


def _copy_of(tensor: Tensor, before: _TensorCopy | None) -> _TensorCopy:
    if before is not None and before.tensor is tensor and before.stays():
        return before
    return _TensorCopy(tensor)
