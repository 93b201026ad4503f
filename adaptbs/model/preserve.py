"""A model, its buffers, an optimizer, a loader and the random states as they were before."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .modules import cuda_devices


class Snapshot:
    """What a forward pass changes beside gradients: buffers (BatchNorm's), and random states of everybody.

    And what a module that has a method `reset` keeps from batch to batch: the hidden state of a language model.

    Args:
        model: whose buffers, and whose CUDA devices' random states.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._look_up()
        self.take()

    def take(self, all_random: bool = True) -> None:
        """Take note of how all is now.

        Args:
            all_random: of NumPy's and Python's random states too, which takes longer than all the rest.
        """
        if any(now.get(name) is not buffer for now, found in self._buffers for name, buffer in found.items()):
            self._look_up()
        self._values = [torch.cat(flat or [b.reshape(-1) for b in buffers]) for buffers, flat in self._alike]
        self._kept = [(m, {k: v for k, v in vars(m).items() if not k.startswith("_")}) for m in self._stateful]
        self._torch = torch.get_rng_state()
        self._others = (random.getstate(), np.random.get_state()) if all_random else None
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in self._devices]

    def restore(self) -> None:
        """Let all be as it was, except for what the model's parameters hold."""
        with torch.no_grad():
            for (buffers, _), values in zip(self._alike, self._values, strict=True):
                parts = torch.split(values, [b.numel() for b in buffers])
                for buffer, value in zip(buffers, parts, strict=True):
                    # (By `.data`, which autograd does not count as a change: a graph that is still to go backward may
                    # hold this buffer.)
                    buffer.data.copy_(value.view(buffer.shape))
        for now, found in self._buffers:
            _restore(now, found)
        for module, attributes in self._kept:
            vars(module).update(attributes)
        torch.set_rng_state(self._torch)
        if self._others is not None:
            random.setstate(self._others[0])
            np.random.set_state(self._others[1])
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)

    def _look_up(self) -> None:
        """Find the buffers. Those alike are copied together: one by one, a net's many small ones take long on a GPU."""
        self._buffers = [(m._buffers, dict(m._buffers)) for m in self._model.modules() if m._buffers]
        alike: dict[Any, list[Tensor]] = {}
        for buffer in {id(b): b for _, found in self._buffers for b in found.values() if b is not None}.values():
            if _writable(buffer):
                alike.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        # (As views, looked up once, where they can be: a dense buffer is one row of memory.)
        self._alike = [
            (found, [b.detach().view(-1) for b in found] if all(b.is_contiguous() for b in found) else None)
            for found in alike.values()
        ]
        self._devices = cuda_devices(self._model)
        self._stateful = [m for m in self._model.modules() if callable(getattr(m, "reset", None))]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore buffers (BatchNorm's) and random states (torch's, NumPy's, Python's), also after an exception.

    Meanwhile compiled models run as they are written: they keep what they were compiled for.
    """
    before = Snapshot(model)
    with _nothing_compiled():
        try:
            yield
        finally:
            before.restore()


@contextmanager
def preserved_grads(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors an empty `.grad` for a while, and spare them the hooks that wait for it to be complete.

    Such a hook (`register_post_accumulate_grad_hook`) may well take the optimizer's step.
    """
    found = []
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        hooks = tensor._post_accumulate_grad_hooks
        found.append((tensor, tensor.grad, hooks, dict(hooks or {})))
    try:
        for tensor, _, hooks, _ in found:
            tensor.grad = None
            if hooks:
                hooks.clear()  # emptied, not replaced: a hook's handle removes it from this very dictionary
        yield
    finally:
        for tensor, grad, hooks, calls in found:
            tensor.grad = grad
            if calls:
                hooks.update(calls)


@contextmanager
def preserved_weights(model: nn.Module) -> Iterator[None]:
    """As `preserved`; restores parameters, `.grad` and train/eval modes too."""
    parameters = [(p, p.detach().clone()) for p in model.parameters()]
    gradients: list[Any] = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    with preserved(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in parameters:
                    parameter.copy_(value)
                for parameter, gradient, saved in gradients:
                    parameter.grad = gradient if saved is None else gradient.copy_(saved)
            for module, training in modes:
                module.training = training


@contextmanager
def preserved_loader(loader: Any) -> Iterator[None]:
    """Restore the generators that a DataLoader and its sampler draw from, and the workers that it keeps."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found: set[Any] = {getattr(owner, "generator", None) for owner in owners} - {None}
    states = [(generator, generator.get_state()) for generator in found]
    workers = getattr(loader, "_iterator", None)  # persistent ones, which would be left in the middle of an epoch
    if isinstance(loader, DataLoader):
        loader._iterator = None
    try:
        yield
    finally:
        if isinstance(loader, DataLoader):
            loader._iterator = workers
        for generator, state in states:
            generator.set_state(state)


class WeightSnapshot:
    """Parameters and an optimizer's state as they are, copied to the host, so that the device has all of its memory.

    Args:
        parameters: that a step changes.
        optimizer: whose state, anything with `.state`; its parameter groups too, where it has them.
    """

    def __init__(self, parameters: Iterable[Tensor], optimizer: Any = None) -> None:
        self._state = getattr(optimizer, "state", {})
        self._groups = [(group, dict(group)) for group in getattr(optimizer, "param_groups", ())]
        self._entries = {p: dict(entry) for p, entry in self._state.items()}
        tensors = [v for entry in self._entries.values() for v in entry.values() if isinstance(v, Tensor)]
        self._copies = [(t, t.detach().to("cpu", copy=True)) for t in (*parameters, *tensors)]

    def restore(self) -> None:
        """Put them back; what state there was none of goes."""
        with torch.no_grad():
            for tensor, value in self._copies:
                tensor.data.copy_(value)
        for parameter in list(self._state):
            if parameter not in self._entries:
                del self._state[parameter]
        for parameter, entry in self._entries.items():
            self._state[parameter].clear()
            self._state[parameter].update(entry)
        for group, found in self._groups:
            group.clear()
            group.update(found)


def _restore(buffers: dict[str, Tensor | None], found: dict[str, Tensor | None]) -> None:
    """Undo what a forward pass has added, replaced or filled."""
    for name in buffers.keys() - found.keys():
        del buffers[name]
    for name, buffer in found.items():
        if name not in buffers or buffers[name] is not buffer:
            buffers[name] = buffer


def _writable(buffer: Tensor) -> bool:
    """Whether each of its entries has memory of its own; of an expanded one nothing can be written in place."""
    return not any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Runs compiled code as it is written, for what it would do on other sizes, or seeing hooks, is compile anew."""
    # Where nothing has loaded the compiler, nothing is compiled, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def add_note(error: BaseException, note: str) -> None:
    """Say more about an error, where Python can (3.11)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
