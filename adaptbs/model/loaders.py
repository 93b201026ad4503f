"""Looks at the batches of a loader, and leaves it, its samplers, its dataset and its collation as they were found."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from .attributes import AttributeCopies
from .values import LARGEST_TENSOR, is_generator, set_state, state_of
from .variables import VariableCopies, is_an_object_of_the_users, is_the_users_function

DEEPEST = 4  # objects in objects: a loader's batch sampler, its sampler, what that keeps
SHORT = 64  # entries of a list that may hold datasets, or transforms
METHODS = ("__iter__", "__getitem__", "__getitems__", "__call__", "__next__")  # by which batches are made
OF_TORCH = ("_iterator", "_IterableDataset_len_called")  # attributes that iterating a DataLoader, or its len(), sets


@contextmanager
def preserved_loader(loader: Any) -> Iterator[Iterator[Any]]:
    """Deliver a loader's batches. At the end restore what iterating it changes in this process, and its workers.

    That is the state of random generators, and the attributes and variables that samplers, datasets, transforms and
    the collation of the user's own change, such as a counter of epochs or a list that is shuffled in place.
    """
    parts, functions = _parts(loader)
    found = [value for part in parts for value in vars(part).values()]
    generators = [(each, state_of(each)) for each in {id(v): v for v in found if is_generator(v)}.values()]
    owners = [part for part in parts if _is_the_users(part)]
    within = [value for owner in owners for value in vars(owner).values()]
    ordered = [(each, each.copy()) for each in within if _may_be_an_order(each)]
    copies = AttributeCopies(owners), VariableCopies([*functions, *_methods(owners)])
    # Persistent workers are set aside, because iterating would leave them in the middle of an epoch.
    is_torchs = isinstance(loader, DataLoader)
    state = {name: getattr(loader, name, None) for name in OF_TORCH} if is_torchs else {}
    for each in copies:
        each.take()
    if is_torchs:
        loader._iterator = None
    batches = _batches(loader)
    try:
        yield batches
    finally:
        batches.close()  # first, as the loader's own code may change something at its end
        for name, value in state.items():
            setattr(loader, name, value)
        for each in copies:
            each.restore()
        for order, saved in ordered:
            order[:] = saved
        for generator, before in generators:
            set_state(generator, before)


def length_of(batches: Any) -> int | None:
    """Number of a loader's batches, or of a dataset's samples. None if it is not known, as of a stream."""
    try:
        return len(batches)
    except Exception:  # streams raise TypeError, NotImplementedError, or what their parts raise
        return None


def _batches(loader: Any) -> Generator[Any, None, None]:
    # A generator, so that the iteration starts with the first batch: a DataLoader draws a seed at its start, and only
    # by then are the random states saved. An adaptive loader's own iteration would measure and decide, so its plain
    # batches are used.
    plain_batches: Callable[[], Iterator[Any]] = getattr(loader, "plain_batches", lambda: iter(loader))
    yield from islice(plain_batches(), None)  # `islice`, as without it a generator of the user's own would be closed


def _is_the_users(part: Any) -> bool:
    is_own_loader = isinstance(part, DataLoader) and is_the_users_function(type(part).__iter__)
    return is_own_loader or is_an_object_of_the_users(part)


def _parts(loader: Any) -> tuple[list[Any], list[Any]]:
    """The loader and the objects that it makes its batches by, and the functions of the user's among these."""
    found: dict[int, Any] = {}
    functions: list[Any] = []
    level = [loader]
    for _ in range(DEEPEST):
        level = [each for each in level if id(each) not in found and hasattr(each, "__dict__")]
        found |= {id(each): each for each in level}
        values = [value for each in level for value in _flat(vars(each).values())]
        functions += [value for value in values if is_the_users_function(value)]
        level = [v for v in values if isinstance(v, Dataset | Sampler) or is_an_object_of_the_users(v)]
    return list(found.values()), functions


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple) and len(value) <= SHORT:
            yield from value
        else:
            yield value


def _methods(owners: Iterable[Any]) -> list[Any]:
    return [method for owner in owners for name in METHODS if (method := getattr(type(owner), name, None)) is not None]


def _may_be_an_order(value: Any) -> bool:
    """True for a list, and for an array that is not large: a sampler may keep its order in one."""
    return type(value) is list or (isinstance(value, np.ndarray) and value.ndim > 0 and value.size <= LARGEST_TENSOR)
