"""The modules that a function of the user's shows that it uses."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from .variables import Calling

DEEPEST = 3  # functions that call each other


def modules_used_by(function: Any) -> list[nn.Module]:
    """The modules that a function refers to, and those of the functions that it calls, without calling any.

    Args:
        function: a function, a method, a `partial`, or an object that can be called.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    level = [function]
    for _ in range(DEEPEST):
        level = [each for each in level if id(each) not in seen]
        seen.update(map(id, level))
        found |= {id(each): each for each in level if isinstance(each, nn.Module)}
        level = [inner for each in level if not isinstance(each, nn.Module) for inner in _referred_to(each)]
    return [*found.values(), *(each for each in level if isinstance(each, nn.Module) and id(each) not in found)]


def owners_of(function: Any) -> list[Any]:
    """The object whose method a function is, or that is called in place of one, unless it is a module."""
    while isinstance(function, partial):
        function = function.func
    owner = function.__self__ if inspect.ismethod(function) else function
    plain = inspect.isroutine(owner) or inspect.isclass(owner) or isinstance(owner, nn.Module)
    return [] if plain else [owner]


def _referred_to(value: Any) -> Iterable[Any]:
    """The objects that a function, method or partial refers to; the modules that are attributes of any other object."""
    if isinstance(value, partial):
        of_the_users = value.functions if isinstance(value, Calling) else ()
        return [value.func, *value.args, *value.keywords.values(), *of_the_users]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        return _closed_over(value)
    if inspect.ismodule(value) or inspect.isclass(value):
        return []
    return [each for each in getattr(value, "__dict__", {}).values() if isinstance(each, nn.Module)]


def _closed_over(function: Any) -> Iterable[Any]:
    if function.__module__ is None or function.__module__.partition(".")[0] == "torch":
        return []
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    try:
        seen = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return defaults
    return [*defaults, *seen.nonlocals.values(), *seen.globals.values()]
