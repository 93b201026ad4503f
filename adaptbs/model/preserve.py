"""Save and restore a model's weights and buffers, `.grad`, an optimizer and the random states."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attributes import AttributeCopies
from .devices import random_state, set_random_state
from .modules import drawing_devices, preserved_modes
from .tensors import TensorCopies
from .values import ValueCopies, state_of, tensors_in
from .variables import CalledFunctions, VariableCopies


class Snapshot:
    """A copy of the state that a forward pass changes.

    That is the model's buffers (such as BatchNorm's) and frozen parameters (such as an averaged copy's), the random
    states of torch, NumPy and Python, the attributes of modules of the user's own classes, such as the hidden state of
    a language model, and the variables that hooks on modules and the `forward` of these classes change.

    Args:
        model: the model whose tensors are copied, and the random states of whose devices.
    """

    def __init__(self, model: nn.Module) -> None:
        self._functions = CalledFunctions(model)
        self._tensors = TensorCopies(model)
        self._devices = drawing_devices(model)
        self._attributes = AttributeCopies(model.modules())
        self._variables = VariableCopies(())
        self.take()

    def take(self, *, all_random: bool = True, trained: bool = True) -> None:
        """Copy the state as it is now.

        Args:
            all_random: copy NumPy's and Python's random states too, which takes longer than everything else.
            trained: take note of the memory of trained parameters too, which is held until `drop` or the next `take`.
        """
        self._tensors.take(trained=trained)
        self._attributes.take()
        functions = self._functions.now()
        if functions != self._variables.functions:
            self._variables = VariableCopies(functions)
        self._variables.take()
        self._torch = torch.get_rng_state()
        self._others = (random.getstate(), np.random.get_state()) if all_random else None
        self._drawn = [(device, random_state(device)) for device in self._devices] if self._devices else []

    def restore(self) -> None:
        """Restore the copied state. Parameters that are trained keep their current values."""
        self._tensors.restore()
        self._attributes.restore()
        self._variables.restore()
        torch.set_rng_state(self._torch)
        if self._others is not None:
            random.setstate(self._others[0])
            np.random.set_state(self._others[1])
        for device, state in self._drawn:
            set_random_state(device, state)

    def drop(self) -> None:
        """Let go of what was copied, which nothing restores any more. `restore` may be called more than once."""
        self._attributes.drop()
        self._variables.drop()
        self._tensors.drop()


class RandomStates:
    """The random states that a model's forward pass may draw from, as they are now.

    Args:
        model: the model, whose devices count.
        generators: generators of the user's own that it may draw from as well.
    """

    def __init__(self, model: nn.Module, generators: Iterable[Any] = ()) -> None:
        self._devices, self._generators = drawing_devices(model), list(generators)
        self._before = self._now()

    @property
    def moved(self) -> bool:
        """True if random numbers have been drawn since."""
        return self._now() != self._before

    def _now(self) -> tuple[object, ...]:
        tensors = [torch.get_rng_state(), *map(random_state, self._devices)]
        own = [pickle.dumps(state_of(each)) for each in self._generators]
        return random.getstate(), pickle.dumps(np.random.get_state()), *(bytes(t.numpy()) for t in tensors), *own


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """At the end, also after an exception, restore everything that a `Snapshot` holds.

    Meanwhile compiled models run eagerly, so that they are not compiled again for other sizes.
    """
    before = Snapshot(model)
    with _nothing_compiled():
        try:
            yield
        finally:
            before.restore()


class Preserver:
    """The same as `preserved`, but searches a model for its state once, not at every pass.

    In a model with 200 BatchNorms the search takes longer than the copies.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []
        self._before: Snapshot | None = None
        self._in_use = False

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """The same as `preserved(model)`. Inside another such context the state is searched and copied anew."""
        if self._in_use:
            with preserved(model):
                yield
            return
        before = self._take(model)
        self._in_use = True
        with _nothing_compiled():
            try:
                yield
            finally:
                self._in_use = False
                before.restore()
                before.drop()  # the next measurement may be many steps away

    def _take(self, model: nn.Module) -> Snapshot:
        modules = list(model.modules())
        if self._before is None or model is not self._model or modules != self._modules:
            self._model, self._modules, self._before = model, modules, Snapshot(model)
        else:
            self._before.take()
        return self._before


@contextmanager
def preserved_grads(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Set the tensors' `.grad` to None and remove their post-accumulate hooks; restore both at the end.

    Such a hook (`register_post_accumulate_grad_hook`) may take the optimizer's step.
    """
    found = []
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        hooks = tensor._post_accumulate_grad_hooks
        found.append((tensor, tensor.grad, hooks, dict(hooks or {})))
    try:
        for tensor, _, hooks, _ in found:
            tensor.grad = None
            if hooks:
                hooks.clear()  # the same dictionary must stay, since a hook's handle removes the hook from it
        yield
    finally:
        for tensor, grad, hooks, calls in found:
            tensor.grad = grad
            if calls:
                hooks.update(calls)


@contextmanager
def preserved_weights(model: nn.Module, others: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restore parameters, `.grad` and train/eval modes too, besides everything that `preserved` restores.

    Args:
        model: the model.
        others: parameters outside of it, such as a loss's.
    """
    found = {id(p): p for p in (*model.parameters(), *others)}.values()
    parameters = [(p, p.detach().clone()) for p in found]
    gradients: list[Any] = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in found]
    try:
        # Within, so that a parameter which a pass has put on other memory is back on its own when its values are.
        with preserved(model), preserved_modes(model):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in parameters:
                parameter.copy_(value)
            for parameter, gradient, saved in gradients:
                parameter.grad = gradient if saved is None else gradient.copy_(saved)


class WeightSnapshot:
    """A copy of parameters and an optimizer's state, in host memory so that it takes none of the device's.

    Args:
        parameters: the parameters that a step changes.
        optimizer: the optimizer, anything with `.state`. Its parameter groups are copied too, if it has them.
    """

    def __init__(self, parameters: Iterable[Tensor], optimizer: Any = None) -> None:
        self._state = getattr(optimizer, "state", {})
        self._groups = [(group, dict(group)) for group in getattr(optimizer, "param_groups", ())]
        self._entries = {p: dict(entry) for p, entry in self._state.items()}
        of_groups = [value for _, group in self._groups for name, value in group.items() if name != "params"]
        values = [*(value for entry in self._entries.values() for value in entry.values()), *of_groups]
        self._containers = ValueCopies()
        self._containers.take(values, ())
        found = {id(t): t for t in (*parameters, *tensors_in(values))}.values()
        self._copies = [(t, t.detach().to("cpu", copy=True)) for t in found]

    def restore(self) -> None:
        """Restore the copied values. Removes optimizer state that did not exist when the copy was made."""
        with torch.no_grad():
            for tensor, value in self._copies:
                tensor.data.copy_(value)
        for parameter in list(self._state):
            if parameter not in self._entries:
                del self._state[parameter]
        for parameter, entry in self._entries.items():
            self._state[parameter].clear()
            self._state[parameter].update(entry)
        self._containers.restore()
        for group, found in self._groups:
            group.clear()
            group.update(found)


def _nothing_compiled() -> AbstractContextManager[Any]:
    """A context that runs compiled code eagerly, since other sizes or hooks would make it compile again."""
    # If the compiler is not loaded, no model is compiled. Loading it would take seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, where Python supports it (3.11 and later)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
