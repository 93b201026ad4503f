"""The indices of one epoch: drawn once, and drawn again when a run is resumed in the middle of it."""

from __future__ import annotations

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

CHUNK = 4096  # indices that are Python numbers at a time
SHOWN = 8  # number of first indices by which two orders are compared

DIFFERS = (
    "the order of the samples, drawn again from the saved state, is another one: resume with the same torch version, "
    "default device, sampler and data as the saved run"
)


@dataclass(frozen=True)
class Draw:
    """One epoch's indices, and how to draw them again.

    Attributes:
        indices: the indices that have not been cut yet.
        recipe: numbers and tensors from which `draw` makes the same indices again. Their size does not depend on the
            number of indices. None: only the indices themselves can be saved.
        order: the epoch's indices, if they follow a rule or are in memory anyway.
        first: position in the epoch of the first index of `order`.
        end: makes the draw that the sampler makes after its last index.
    """

    indices: Iterator[Any]
    recipe: dict[str, Any] | None = None
    order: Sequence[Any] | Tensor | None = None
    first: int = 0
    end: Callable[[], None] | None = None

    @property
    def can_be_saved(self) -> bool:
        """False if all indices have to be read first."""
        return self.recipe is not None or self.order is not None

    def state_dict(self, position: int) -> dict[str, Any]:
        """State for `redraw`, to continue with the index at this position of the epoch."""
        if self.recipe is not None:
            return {**self.recipe, "position": position}
        if self.order is None:
            raise RuntimeError("these indices have not been read yet")
        left = self.order[position - self.first :]
        return {"indices": left.clone() if isinstance(left, Tensor) else left, "position": position}

    def whole(self) -> Sequence[Any] | Tensor:
        """All indices. Afterwards the sampler's generator is where it is after an epoch."""
        if self.order is None:
            return read_all(self.indices)
        if self.end is not None:
            self.end()
        return self.order


class Rest(NamedTuple):
    """The rest of an epoch.

    Attributes:
        state: what `PassCut.state_dict` has returned.
        draw: the indices; None for a stream.
    """

    state: dict[str, Any]
    draw: Draw | None = None


class OwnDraw(ABC):
    """A sampler with a method that draws an epoch's indices."""

    @abstractmethod
    def draw(self, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
        """The same as the function `draw` of this sampler."""


def draw(sampler: Any, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
    """Draw the indices of an epoch, the same ones and from the same generator as the sampler itself would.

    Args:
        sampler: yields indices.
        recipe: recipe of an epoch to draw again, without touching a generator. None: draw a new epoch.
        position: number of the epoch's first indices that have been delivered.

    Raises:
        ValueError: if the recipe belongs to another sampler, or the indices come out differently.
    """
    if isinstance(sampler, OwnDraw):
        return sampler.draw(recipe, position)
    kind = type(sampler)
    described = {"sampler": kind.__name__, "length": len(sampler)} if hasattr(sampler, "__len__") else {}
    if recipe is not None:
        _check_sampler(recipe, described)
    if kind is range or kind is SequentialSampler:
        order = sampler if kind is range else range(len(sampler.data_source))
        return Draw(iter(order[position:]), described, order)
    if kind is RandomSampler:
        if not sampler.replacement and sampler.num_samples <= len(sampler.data_source):
            return _permutation(sampler, described, recipe, position)
        if sampler.generator is None or recipe is not None:
            return _seeded(sampler, described, recipe, position)
    if kind in (SubsetRandomSampler, WeightedRandomSampler) and torch.get_default_device().type == "cpu":
        return _drawn_at_once(sampler, described, recipe, position)
    if recipe is not None:
        raise ValueError(DIFFERS)
    return Draw(iter(sampler))


def redraw(sampler: Any, state: dict[str, Any]) -> Draw:
    """Continue from `Draw.state_dict`. Touches no generator.

    Raises:
        ValueError: if the state belongs to another sampler, or the indices come out differently.
    """
    if "indices" in state:
        return draw_kept(state["indices"], state["position"], state["position"])
    return draw(sampler, state, state["position"])


def draw_kept(order: Sequence[Any] | Tensor, first: int, position: int) -> Draw:
    """A draw of indices that are kept one by one.

    Args:
        order: the kept indices.
        first: position in the epoch of the first kept index.
        position: position in the epoch of the next index.
    """
    return Draw(in_chunks(order, position - first), None, order, first)


def _check_sampler(saved: dict[str, Any], recipe: dict[str, Any]) -> None:
    then, now = ((of.get("sampler"), of.get("length")) for of in (saved, recipe))
    if then != now:
        raise ValueError(
            f"the saved run draws its order by a {then[0]} of {then[1]} indices, this one by a {now[0]} of {now[1]}: "
            "build it with the same dataset, shuffle and sampler"
        )


def _seed() -> int:
    """The seed that a RandomSampler without a generator draws."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _checksum(indices: Sequence[Any], saved: dict[str, Any] | None) -> int:
    """Checksum of an order's first indices. Raises ValueError if it is not that of the saved recipe."""
    shown = zlib.crc32(repr(list(indices)).encode())
    if saved is not None and saved["first"] != shown:
        raise ValueError(DIFFERS)
    return shown


def _permutation(sampler: RandomSampler, recipe: dict[str, Any], saved: dict[str, Any] | None, position: int) -> Draw:
    """One permutation, which RandomSampler draws at its first index. It is held as a tensor, not as a list."""
    n, given = len(sampler.data_source), sampler.generator
    if saved is None:
        start = _seed() if given is None else given.get_state()
        generator = Generator().manual_seed(start) if given is None else given
    else:
        start = saved["start"]
        generator = _generator_at(start)
    order = torch.randperm(n, generator=generator)[: sampler.num_samples]
    first = _checksum(order[:SHOWN].tolist(), saved)
    recipe |= {"start": start, "first": first, "ended": saved is not None and saved["ended"]}

    def end() -> None:
        # RandomSampler draws one more permutation when it is asked for an index after a whole one. The user's own
        # generator shows that.
        if given is not None and sampler.num_samples == n and not recipe["ended"]:
            torch.randperm(n, generator=given)
        recipe["ended"] = True

    return Draw(chain(in_chunks(order, position), _at_the_end(end)), recipe, order, end=end)


def _at_the_end(end: Callable[[], None]) -> Iterator[Any]:
    end()
    yield from ()


def _generator_at(start: int | Tensor) -> Generator:
    generator = Generator()
    return generator.set_state(start) if isinstance(start, Tensor) else generator.manual_seed(start)


def _seeded(sampler: RandomSampler, recipe: dict[str, Any], saved: dict[str, Any] | None, position: int) -> Draw:
    """Several draws from a generator that RandomSampler makes for the epoch. Nobody else sees it."""
    start = _seed() if saved is None else saved["start"]
    sampler = copy.copy(sampler)
    sampler.generator = _generator_at(start)
    return _without_delivered(iter(sampler), recipe | {"start": start}, saved, position)


def _drawn_at_once(sampler: Any, recipe: dict[str, Any], saved: dict[str, Any] | None, position: int) -> Draw:
    """A single draw at the first index, from the sampler's generator or from torch's. It is held as a tensor."""
    if saved is None:
        generator: Generator = torch.default_generator if sampler.generator is None else sampler.generator
        start = generator.get_state()
    else:
        start = saved["start"]
        generator = _generator_at(start)
    if isinstance(sampler, WeightedRandomSampler):
        order = torch.multinomial(sampler.weights, sampler.num_samples, sampler.replacement, generator=generator)
        first = _checksum(order[:SHOWN].tolist(), saved)
        return Draw(in_chunks(order, position), recipe | {"start": start, "first": first}, order)
    order = torch.randperm(len(sampler.indices), generator=generator)
    at = sampler.indices.__getitem__
    first = _checksum([at(place) for place in order[:SHOWN].tolist()], saved)
    return Draw(map(at, in_chunks(order, position)), recipe | {"start": start, "first": first})


def _without_delivered(
    indices: Iterator[Any], recipe: dict[str, Any], saved: dict[str, Any] | None, position: int
) -> Draw:
    """Begin to draw, and leave out the first `position` indices, which have been delivered."""
    shown = list(islice(indices, SHOWN))
    recipe["first"] = _checksum(shown, saved)
    indices = chain(shown, indices)
    next(islice(indices, position, position), None)
    return Draw(indices, recipe)


def in_chunks(order: Sequence[Any] | Tensor, start: int = 0, stop: int | None = None) -> Iterator[Any]:
    """The indices start:stop as Python numbers, at most `CHUNK` of them in memory at a time."""
    stop = len(order) if stop is None else stop
    if isinstance(order, range):
        return iter(order[start:stop])
    if not isinstance(order, Tensor):
        return islice(order, start, stop)
    # A generator of single indices would be entered for each of them.
    return chain.from_iterable(order[at : min(at + CHUNK, stop)].tolist() for at in range(start, stop, CHUNK))


def read_all(indices: Iterator[Any]) -> list[Any] | Tensor:
    """Read indices to their end. Returns an int64 tensor, or a list if they are not all integers."""
    chunks: list[Tensor] = []
    while chunk := list(islice(indices, 1 << 16)):
        if set(map(type, chunk)) != {int}:
            return [*chain.from_iterable(chunk.tolist() for chunk in chunks), *chunk, *indices]
        chunks.append(torch.tensor(chunk, dtype=torch.int64))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int64)
