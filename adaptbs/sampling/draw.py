"""The indices of one epoch: drawn once, and drawn again where a run goes on in the middle of it."""

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
SHOWN = 8  # first indices that tell one order from another

DIFFERS = (
    "the order of the samples, drawn again from the saved state, is another: go on with the torch, its default device, "
    "the sampler and the data of the saved run"
)


@dataclass(frozen=True)
class Draw:
    """One epoch's indices, and how to draw them again.

    Attributes:
        indices: the indices that have not been cut yet.
        recipe: numbers and tensors, whose size does not depend on the number of indices, from which `draw` makes the
            same indices again. None: nothing but the indices themselves will do.
        order: the epoch's indices, where they follow a rule or are kept anyway.
        first: position in the epoch of the first of `order`.
        end: makes the draw that the sampler makes after its last index.
    """

    indices: Iterator[Any]
    recipe: dict[str, Any] | None = None
    order: Sequence[Any] | Tensor | None = None
    first: int = 0
    end: Callable[[], None] | None = None

    @property
    def can_be_saved(self) -> bool:
        """True unless nothing but reading all indices would do."""
        return self.recipe is not None or self.order is not None

    def state_dict(self, position: int) -> dict[str, Any]:
        """State for `redraw`, to go on with the index at this position of the epoch."""
        if self.recipe is not None:
            return {**self.recipe, "position": position}
        if self.order is None:
            raise RuntimeError("these indices have not been read yet")
        left = self.order[position - self.first :]
        return {"indices": left.clone() if isinstance(left, Tensor) else left, "position": position}

    def whole(self) -> Sequence[Any] | Tensor:
        """All indices, after every draw that the sampler makes for them."""
        if self.order is None:
            return written(self.indices)
        if self.end is not None:
            self.end()
        return self.order


class Rest(NamedTuple):
    """The rest of an epoch.

    Attributes:
        state: `EpochCut.state_dict`.
        draw: its indices; None for a stream.
    """

    state: dict[str, Any]
    draw: Draw | None = None


class OwnDraw(ABC):
    """A sampler that knows itself how an epoch's indices are drawn."""

    @abstractmethod
    def draw(self, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
        """See the function of this name."""


def draw(sampler: Any, recipe: dict[str, Any] | None = None, position: int = 0) -> Draw:
    """Draw the indices of an epoch, the same ones and from the same generator as the sampler itself would.

    Args:
        sampler: yields indices.
        recipe: draws the epoch again that it belongs to, without touching a generator. None draws a new one.
        position: indices, from the first, that have been delivered.

    Raises:
        ValueError: if the sampler is not the recipe's, or what it draws differs.
    """
    if isinstance(sampler, OwnDraw):
        return sampler.draw(recipe, position)
    kind = type(sampler)
    made = {"sampler": kind.__name__, "length": len(sampler)} if hasattr(sampler, "__len__") else {}
    if recipe is not None:
        _check_sampler(recipe, made)
    if kind is range or kind is SequentialSampler:
        order = sampler if kind is range else range(len(sampler.data_source))
        return Draw(iter(order[position:]), made, order)
    if kind is RandomSampler:
        if not sampler.replacement and sampler.num_samples <= len(sampler.data_source):
            return _permutation(sampler, made, recipe, position)
        if sampler.generator is None or recipe is not None:
            return _seeded(sampler, made, recipe, position)
    if kind in (SubsetRandomSampler, WeightedRandomSampler) and torch.get_default_device().type == "cpu":
        return _drawn_at_once(sampler, made, recipe, position)
    if recipe is not None:
        raise ValueError(DIFFERS)
    return Draw(iter(sampler))


def redraw(sampler: Any, state: dict[str, Any]) -> Draw:
    """Go on from `Draw.state_dict`. Touches no generator.

    Raises:
        ValueError: if the sampler is not the one that was saved, or what it draws differs.
    """
    if "indices" in state:
        return kept(state["indices"], state["position"], state["position"])
    return draw(sampler, state, state["position"])


def kept(order: Sequence[Any] | Tensor, first: int, position: int) -> Draw:
    """Indices that are kept one by one. `first` and `position` are places in the epoch: of the first kept, and now."""
    return Draw(in_chunks(order, position - first), None, order, first)


def _check_sampler(recipe: dict[str, Any], made: dict[str, Any]) -> None:
    saved, this = ((of.get("sampler"), of.get("length")) for of in (recipe, made))
    if saved != this:
        raise ValueError(
            f"the saved run draws its order by a {saved[0]} of {saved[1]} indices, this one by a {this[0]} of "
            f"{this[1]}: build it with the same dataset, shuffle and sampler"
        )


def _seed() -> int:
    """The seed that a RandomSampler without a generator draws."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _first(indices: Sequence[Any], recipe: dict[str, Any] | None) -> int:
    """Checksum of an order's first indices. They are compared with the recipe's."""
    shown = zlib.crc32(repr(list(indices)).encode())
    if recipe is not None and recipe["first"] != shown:
        raise ValueError(DIFFERS)
    return shown


def _permutation(sampler: RandomSampler, made: dict[str, Any], recipe: dict[str, Any] | None, position: int) -> Draw:
    """One permutation, which RandomSampler draws at its first index. It is held as a tensor, not as a list."""
    n, given = len(sampler.data_source), sampler.generator
    if recipe is None:
        start = _seed() if given is None else given.get_state()
        generator = Generator().manual_seed(start) if given is None else given
    else:
        start = recipe["start"]
        generator = _generator_at(start)
    order = torch.randperm(n, generator=generator)[: sampler.num_samples]
    first = _first(order[:SHOWN].tolist(), recipe)
    made |= {"start": start, "first": first, "ended": recipe is not None and recipe["ended"]}

    def end() -> None:
        # RandomSampler draws a permutation more when it is asked for what follows a whole one. It shows in a generator
        # of the user's.
        if given is not None and sampler.num_samples == n and not made["ended"]:
            torch.randperm(n, generator=given)
        made["ended"] = True

    return Draw(chain(in_chunks(order, position), _after(end)), made, order, end=end)


def _after(end: Callable[[], None]) -> Iterator[Any]:
    end()
    yield from ()


def _generator_at(start: int | Tensor) -> Generator:
    generator = Generator()
    return generator.set_state(start) if isinstance(start, Tensor) else generator.manual_seed(start)


def _seeded(sampler: RandomSampler, made: dict[str, Any], recipe: dict[str, Any] | None, position: int) -> Draw:
    """Several draws, all from a generator that RandomSampler makes for the epoch and nobody else sees."""
    start = _seed() if recipe is None else recipe["start"]
    sampler = copy.copy(sampler)
    sampler.generator = _generator_at(start)
    return _from(iter(sampler), made | {"start": start}, recipe, position)


def _drawn_at_once(sampler: Any, made: dict[str, Any], recipe: dict[str, Any] | None, position: int) -> Draw:
    """A single draw at the first index, from the sampler's generator or from torch's. It is held as a tensor."""
    if recipe is None:
        generator: Generator = torch.default_generator if sampler.generator is None else sampler.generator
        start = generator.get_state()
    else:
        start = recipe["start"]
        generator = _generator_at(start)
    if isinstance(sampler, WeightedRandomSampler):
        order = torch.multinomial(sampler.weights, sampler.num_samples, sampler.replacement, generator=generator)
        first = _first(order[:SHOWN].tolist(), recipe)
        return Draw(in_chunks(order, position), made | {"start": start, "first": first}, order)
    order = torch.randperm(len(sampler.indices), generator=generator)
    at = sampler.indices.__getitem__
    first = _first([at(place) for place in order[:SHOWN].tolist()], recipe)
    return Draw(map(at, in_chunks(order, position)), made | {"start": start, "first": first})


def _from(indices: Iterator[Any], made: dict[str, Any], recipe: dict[str, Any] | None, position: int) -> Draw:
    """Begin to draw, and leave out what has been delivered."""
    shown = list(islice(indices, SHOWN))
    made["first"] = _first(shown, recipe)
    indices = chain(shown, indices)
    next(islice(indices, position, position), None)
    return Draw(indices, made)


def in_chunks(order: Sequence[Any] | Tensor, start: int = 0, stop: int | None = None) -> Iterator[Any]:
    """The indices from `start` on, as Python numbers, of which few are in memory at a time."""
    stop = len(order) if stop is None else stop
    if isinstance(order, range):
        return iter(order[start:stop])
    if not isinstance(order, Tensor):
        return islice(order, start, stop)
    # A generator of single indices would be entered for each of them.
    return chain.from_iterable(order[at : min(at + CHUNK, stop)].tolist() for at in range(start, stop, CHUNK))


def written(indices: Iterator[Any]) -> list[Any] | Tensor:
    """Read indices to their end: an int64 tensor, or a list where they are no integers."""
    chunks: list[Tensor] = []
    while chunk := list(islice(indices, 1 << 16)):
        if set(map(type, chunk)) != {int}:
            return [*chain.from_iterable(chunk.tolist() for chunk in chunks), *chunk, *indices]
        chunks.append(torch.tensor(chunk, dtype=torch.int64))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int64)
