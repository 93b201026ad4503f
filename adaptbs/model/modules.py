"""Facts about a model: its trainable parameters, its devices, layers that couple samples or add randomness."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

from .devices import draws

T = TypeVar("T")

DEEP = 256  # a model with more modules than this is not searched at each epoch


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, in the order of `model.parameters()`. Gradients have one entry for each."""
    return [p for p in model.parameters() if p.requires_grad]


def has_batch_norm(model: nn.Module) -> bool:
    """True if any BatchNorm of the model is in training mode."""
    # The common base class also covers lazy and synchronised BatchNorm.
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def is_compiled(module: nn.Module) -> bool:
    """True if a module is compiled, by `torch.compile(module)` or `module.compile()`."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    dynamo = sys.modules.get("torch._dynamo")  # if the compiler is not loaded, nothing is compiled
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def has_compiled(model: nn.Module) -> bool:
    """True if a model or a part of it is compiled."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    # The same as `is_compiled` of each module, but faster: it is asked at each epoch, of deep models too.
    kind = dynamo.OptimizedModule
    return any([m._compiled_call_impl is not None or isinstance(m, kind) for m in model.modules()])


def has_static_shapes(model: nn.Module) -> bool:
    """True if a model or a part of it is compiled anew for each shape, by `torch.compile(..., dynamic=False)`."""
    contexts = (getattr(module, "dynamo_ctx", None) for module in model.modules() if is_compiled(module))
    return any(getattr(context, "_dynamic", None) is False for context in contexts)


def drawing_devices(model: nn.Module) -> list[torch.device]:
    """The devices other than the CPU that a forward pass of the model draws random numbers on.

    These are the devices of its parameters, and the CUDA devices that `DataParallel` copies it to.
    """
    parallel = [m for m in model.modules() if isinstance(m, nn.DataParallel)]
    replicas = {torch.device("cuda", int(i)) for m in parallel for i in getattr(m, "device_ids", None) or ()}
    return sorted({p.device for p in model.parameters() if draws(p.device)} | replicas, key=str)


# Layers that couple samples or add randomness in training. In evaluation mode they still compute the same kind of loss.
NOISY = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RNNBase)


@contextmanager
def without_chance(model: nn.Module) -> Iterator[None]:
    """Put dropout, BatchNorm, recurrent layers and attention in evaluation mode, and back in training mode at the end.

    The model as a whole stays in training mode, because some models return something other than a loss in evaluation.
    """
    noisy = [
        m for m in model.modules()
        if m.training and (isinstance(m, NOISY) or (m is not model and drops_by_itself(m)))
    ]  # fmt: skip
    try:
        for module in noisy:
            module.training = False
        yield
    finally:
        for module in noisy:
            module.training = True


def drops_by_itself(module: nn.Module) -> bool:
    """True if a module applies dropout without calling a dropout layer, at its own rate or at the rate of such a layer.

    Attention does: its kernel multiplies queries and keys, applies dropout and multiplies by the values at once.
    """
    for name, found in (*vars(module).items(), *module._modules.items()):
        of_attention = isinstance(found, nn.modules.dropout._DropoutNd) and "att" in name
        rate = found.p if of_attention else found
        if "drop" in name and isinstance(rate, float) and rate > 0:
            return True
    return False


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """At the end put each module back in its mode, and freeze and thaw what was so.

    A `train()` of the user's own may freeze layers.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, trains in trained:
            parameter.requires_grad_(trains)


@contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """Put a model in training mode, and back at the end; see `preserved_modes`."""
    with preserved_modes(model):
        model.train()
        yield


class CachedFact(Generic[T]):
    """A fact about a model that is asked for at every epoch, and is found by searching all of its modules.

    In a deep model the search takes as long as a step. So there it is made at the first call, the second, the fourth,
    the eighth and so on, and whenever the key has changed. Other calls return the fact found last.

    Args:
        model: the model.
        fact: searches the model. Returns the fact.
        key: returns something that is quick to compute and that the fact depends on besides the model.
    """

    def __init__(self, model: nn.Module, fact: Callable[[], T], key: Callable[[], object] = lambda: None) -> None:
        self._fact, self._key, self._is_deep = fact, key, sum(1 for _ in model.modules()) > DEEP
        self._calls, self._found_by = 0, key()
        self._found: T

    def __call__(self) -> T:
        self._calls, key = self._calls + 1, self._key()
        if not self._is_deep or self._calls & (self._calls - 1) == 0 or key != self._found_by:
            self._found, self._found_by = self._fact(), key
        return self._found
