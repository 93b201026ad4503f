"""Copies the variables outside of objects that functions of the user's change in a pass, such as a global counter."""

from __future__ import annotations

import dis
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from operator import is_
from types import CellType, CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .attributes import AttributeCopies
from .values import ValueCopies, is_generator, is_to_be_copied, is_trained

if TYPE_CHECKING:
    from typing_extensions import Self

DEEPEST = 3  # functions that call each other
NOTHING = object()  # in a variable that has no value
STANDARD_LIBRARY = os.path.dirname(os.__file__)


class Calling(partial[Any]):
    """A function of ours that calls some of the user's, such as a trainer's loss, and says which.

    What a pass changes in variables is looked for in the functions that a loss refers to. It would end at ours.

    Args:
        function: our function.
        functions: the user's functions, or objects that are called. None are left out.
    """

    functions: tuple[Any, ...]

    def __new__(cls, function: Callable[..., Any], *functions: Any) -> Self:
        """The same function as ours. It is no `__init__`, as a partial takes its arguments here."""
        self = super().__new__(cls, function)
        self.functions = tuple(each for each in functions if each is not None)
        return self


class VariableCopies:
    """The variables that functions close over, and the global ones that they name, and a copy.

    A loss of the user's may count its calls in a global variable, or draw from a generator of its own, and a hook on a
    layer may append to a list. Variables that such functions set are set back, and what their values hold is restored
    as that of attributes is, also that of objects of the user's classes. Functions of installed packages are left
    alone.

    Args:
        functions: functions, methods, partials, and objects that can be called.
    """

    def __init__(self, functions: Iterable[Any]) -> None:
        self.functions = list(functions)
        self._places = list(_places(self.functions))
        self._bound = [each.__self__ for each in self.functions if inspect.ismethod(each)]
        self._kept: list[tuple[_Place, Any]] = []
        self._values, self._objects, self._owners = ValueCopies(), AttributeCopies(()), list[Any]()

    @property
    def generators(self) -> list[Any]:
        """Generators of random numbers among the variables, and among the attributes of the user's objects."""
        values = [place.read() for place in self._places]
        return [*(each for each in values if is_generator(each)), *self._objects_of(values).generators]

    @property
    def trained(self) -> list[Tensor]:
        """Tensors that a backward pass gives a gradient: variables, and attributes of the user's objects."""
        values = [place.read() for place in self._places]
        return [*filter(is_trained, values), *self._objects_of(values).trained]

    def take(self) -> None:
        """Copy the variables as they are now."""
        if not self._places and not self._bound:
            return
        self._kept = [(place, place.read()) for place in self._places]
        values = [value for _, value in self._kept]
        self._values.take(values, [each for each in values if is_to_be_copied(each, of_module=False)])
        self._objects = self._objects_of(values)
        self._objects.take()

    def _objects_of(self, values: Iterable[Any]) -> AttributeCopies:
        """The copies of the user's objects among these values, and of those whose methods the functions are."""
        owners = list({id(each): each for each in (*self._bound, *values) if is_an_object_of_the_users(each)}.values())
        if [*map(id, owners)] != [*map(id, self._owners)]:
            self._owners, self._objects = owners, AttributeCopies(owners)
        return self._objects

    def restore(self) -> None:
        """Restore the copied variables."""
        for place, value in self._kept:
            place.write(value)
        self._values.restore()
        self._objects.restore()

    def drop(self) -> None:
        """Let go of the copies."""
        self._kept = []
        self._values.drop()
        self._objects.drop()


def functions_in(model: nn.Module) -> list[Any]:
    """The functions of the user's that a pass through a model calls: hooks on its modules, and their `forward`."""
    return CalledFunctions(model).now()


class CalledFunctions:
    """Finds the functions that a pass calls beside layers: hooks on modules, and the `forward` of their classes.

    Args:
        model: the model, whose modules are searched for once.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._kinds = list(dict.fromkeys(map(type, modules)))
        self._hooks = [
            hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ]  # fmt: skip
        self._called: list[Any] | None = None
        self._found: list[Any] = []

    def now(self) -> list[Any]:
        """Those that are the user's, as they are now: hooks come and go. The same list where nothing has changed."""
        # A step that may have to be repeated asks for this. Most models have no hook at all.
        called: list[Any] = [hook for hooks in filter(None, self._hooks) for hook in hooks.values()]
        called += [getattr(kind, "forward", None) for kind in self._kinds]
        before = self._called
        if before is None or len(called) != len(before) or not all(map(is_, called, before)):
            self._called = called
            unique = {id(each): each for each in called}.values()
            self._found = [each for each in unique if is_the_users_function(each)]
        return self._found


class _Cell(NamedTuple):
    """A variable that a function closes over."""

    cell: CellType

    def read(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:  # it has no value yet
            return NOTHING

    def write(self, value: Any) -> None:
        cell = self.cell
        if value is not NOTHING and self.read() is not value:
            cell.cell_contents = value


class _Global(NamedTuple):
    """A global variable."""

    variables: dict[str, Any]
    name: str

    def read(self) -> Any:
        return self.variables.get(self.name, NOTHING)

    def write(self, value: Any) -> None:
        if value is NOTHING:
            self.variables.pop(self.name, None)
        elif self.read() is not value:
            self.variables[self.name] = value


class _Held(NamedTuple):
    """An argument that a function has by default or by a `partial`, or an attribute: what it holds may change."""

    value: Any

    def read(self) -> Any:
        return self.value

    def write(self, value: Any) -> None:
        """It stays the same object."""


_Place = _Cell | _Global | _Held


def _places(functions: Iterable[Any]) -> Iterator[_Place]:
    """The variables of functions, and of the functions of the user's that these refer to. Each of them comes once."""
    level, seen = list(functions), set[Any]()
    level += [inner for each in level if isinstance(each, Calling) for inner in each.functions]
    for _ in range(DEEPEST):
        found = {_key(place): place for each in level for place in _referred_to(each)}
        new = [place for key, place in found.items() if key not in seen]
        seen.update(found)
        level = [place.read() for place in new]
        yield from (p for p, value in zip(new, level, strict=True) if not _is_code(value))


def _key(place: _Place) -> Any:
    if isinstance(place, _Global):
        return id(place.variables), place.name
    return id(place.cell) if isinstance(place, _Cell) else id(place.value)


def _referred_to(value: Any) -> Iterator[_Place]:
    """The variables to which a function, method or partial, or an object of the user's that may be called, refers."""
    while isinstance(value, partial):
        yield from map(_Held, (*value.args, *value.keywords.values()))
        yield from map(_Held, value.functions if isinstance(value, Calling) else ())
        value = value.func
    owner = value.__self__ if inspect.ismethod(value) else value
    if is_an_object_of_the_users(owner):
        attributes = vars(owner).values()
        yield from (_Held(each) for each in attributes if inspect.isroutine(each) or isinstance(each, partial))
    function = _function(value)
    if not is_the_users_function(function):
        return
    yield from map(_Held, (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    yield from map(_Cell, function.__closure__ or ())
    code, names = function.__code__, function.__globals__
    yield from (_Global(names, name) for name in sorted(_names(code)) if name in names or name in _set_by(code))


def _is_code(value: Any) -> bool:
    return inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)


def _names(code: CodeType) -> set[str]:
    """The names that are neither local nor closed over, of a function and of those within it."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _set_by(code: CodeType) -> set[str]:
    """The global names that a function, or one within it, sets."""
    stored = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_GLOBAL"}
    return stored.union(*(_set_by(each) for each in code.co_consts if isinstance(each, CodeType)))


def _function(value: Any) -> Any:
    """The function behind a method, a partial or an object that can be called."""
    while isinstance(value, partial):
        value = value.func
    if inspect.ismethod(value):
        return value.__func__
    if inspect.isroutine(value) or isinstance(value, nn.Module) or inspect.isclass(value):
        return value
    return inspect.getattr_static(type(value), "__call__", None)


def is_the_users_function(value: Any) -> bool:
    """True for a function, or anything that can be called, whose code is the user's, not an installed package's."""
    value = _function(value)
    if not inspect.isfunction(value) or _is_of_adaptbs(value.__module__):
        return False
    return _is_the_users_file(value.__code__.co_filename)


def is_an_object_of_the_users(value: Any) -> bool:
    """True for an object of a class of the user's with attributes, but not for a model, optimizer or DataLoader."""
    if not _is_the_users_module(type(value).__module__) or not hasattr(value, "__dict__"):
        return False
    return not isinstance(value, nn.Module | Optimizer | DataLoader) and not inspect.isclass(value)


@lru_cache(maxsize=256)
def _is_the_users_module(name: str) -> bool:
    module = sys.modules.get(name)
    if name == "builtins" or module is None or _is_of_adaptbs(name):
        return False
    return _is_the_users_file(getattr(module, "__file__", None) or "")


def _is_of_adaptbs(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "adaptbs"


def _is_the_users_file(file: str) -> bool:
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and not file.startswith((STANDARD_LIBRARY, "<frozen"))
