"""Copies the attributes that objects of the user's own classes change in a pass, such as counters."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import Tensor, nn

from .values import CONTAINERS, ValueCopies, is_generator, is_to_be_copied, is_trained

OF_TORCH = frozenset(vars(nn.Module()))  # parameters, buffers, hooks and the like, which others take care of


class AttributeCopies:
    """The attributes of the user's objects, modules among them, and a copy.

    A loss that keeps the embeddings of earlier batches counts its place in them by an attribute, for instance, and a
    trainer collects what it is going to log. An attribute that a pass has set is set back. One that it has added is
    removed, unless its name is private. What it has changed in place is undone for tensors, random generators and
    containers of up to `LARGEST` entries, but not for the tensors in these; longer lists get back their length. Of an
    object that is no module only tensors of up to `LARGEST_TENSOR` entries are copied.

    Args:
        owners: the objects. Those whose class is torch's are left alone.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._owners = [_Owner(each) for each in owners if hasattr(each, "__dict__") and _is_the_users(each)]
        self._inside: list[Any] = []  # values that may be changed in place
        self._tensors: list[tuple[Tensor, bool]] = []  # and tensors, with whether a module has them
        self._values = ValueCopies()

    @property
    def generators(self) -> list[Any]:
        """Generators of random numbers among the attributes."""
        return [value for owner in self._owners for value in vars(owner.each).values() if is_generator(value)]

    @property
    def trained(self) -> list[Tensor]:
        """Tensors among the attributes that a backward pass gives a gradient."""
        return [value for owner in self._owners for value in vars(owner.each).values() if is_trained(value)]

    def take(self) -> None:
        """Copy the attributes as they are now."""
        # A step that may have to be repeated asks for this, and hardly ever finds other attributes than the one before.
        # So what is done for each owner is written out here.
        changed = False
        for owner in self._owners:
            now = owner.each.__dict__
            if now is owner.now and list(now) == owner.names and all(map(is_, map(now.get, owner.own), owner.values)):
                continue
            owner.look()
            changed = True
        if changed:
            self._inside = [value for owner in self._owners for value in owner.inside]
            self._tensors = [(value, owner.of_module) for owner in self._owners for value in owner.tensors]
        if changed or self._inside or self._tensors:
            tensors = [value for value, of_module in self._tensors if is_to_be_copied(value, of_module=of_module)]
            self._values.take(self._inside, tensors)

    def restore(self) -> None:
        """Restore the copied attributes."""
        for owner in self._owners:
            owner.restore()
        self._values.restore()

    def drop(self) -> None:
        """Let go of the copied attributes, which may hold the graph of a step, or its activations."""
        for owner in self._owners:
            owner.drop()
        self._inside, self._tensors = [], []
        self._values.drop()


class _Owner:
    """The attributes that an object had at the latest look.

    Args:
        each: the object.

    Attributes:
        each: the object.
        now: its attributes by name; the dictionary that it keeps them in, which changes with them.
        names: names of all that there were.
        own: names of those that torch does not give to every module.
        values: their values.
        inside: those of the values that may be changed in place.
        tensors: those that are tensors.
        of_module: True if the object is a module.
    """

    __slots__ = ("each", "inside", "names", "now", "of_module", "own", "tensors", "values")

    def __init__(self, each: Any) -> None:
        self.each, self.of_module = each, isinstance(each, nn.Module)
        self.drop()

    def look(self) -> None:
        """Take note of the attributes as they are now."""
        self.now: dict[str, Any] = vars(self.each)
        self.names = list(self.now)
        self.own = [name for name in self.names if name not in OF_TORCH]
        self.values = [self.now[name] for name in self.own]
        self.inside = [value for value in self.values if type(value) in CONTAINERS or is_generator(value)]
        self.tensors = [value for value in self.values if isinstance(value, Tensor)]

    def restore(self) -> None:
        """Set the attributes back. Remove those that were added."""
        now, found = self.now, frozenset(self.own)
        for name in [name for name in now if name not in found and name not in OF_TORCH and name[0] != "_"]:
            del now[name]
        now.update(zip(self.own, self.values, strict=True))

    def drop(self) -> None:
        """Hold no value any more."""
        self.now, self.names, self.own = {}, [], []
        self.values, self.inside, self.tensors = [], [], []


def _is_the_users(owner: Any) -> bool:
    return not type(owner).__module__.startswith(("torch.", "adaptbs."))
