"""Checks of arguments. Their errors name the argument, the rule and the value."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")  # made by Optimizer.__init__


def check_size(name: str, value: object) -> None:
    """Raise TypeError unless `value` is an integer, ValueError if it is below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: it must be an integer of at least 1")
    if int(value) < 1:
        raise ValueError(f"{name}={value!r}: it must be at least 1")


def check_choice(name: str, value: object, choices: tuple[str, ...], *, or_function: bool = False) -> None:
    """Raise ValueError unless `value` is one of `choices`, or a function where `or_function` allows one."""
    if value not in choices and not (or_function and callable(value)):
        also = " or a function" if or_function else ""
        raise ValueError(f"{name}={value!r}: it must be one of {', '.join(map(repr, choices))}{also}")


def check_share(name: str, value: object, *, or_zero: bool = False) -> None:
    """Raise TypeError unless `value` is a number, ValueError unless 0 < value < 1. `or_zero` also allows 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: it must be a number between 0 and 1")
    if not (0 < float(value) < 1 or (value == 0 and or_zero)):
        ends = "and be below 1 (0: off)" if or_zero else "and be neither"
        raise ValueError(f"{name}={value!r}: it must lie between 0 and 1, {ends}")


# Where torch keeps what splits parameters over ranks. These modules are looked at only if they have been imported.
SHARDING = (("torch.distributed.tensor", "DTensor"), ("torch.distributed.fsdp", "FullyShardedDataParallel"))


def check_module(model: object) -> None:
    """Raise TypeError unless `model` is a torch module."""
    if not isinstance(model, nn.Module):
        hint = hint_of_fastai(model)
        raise TypeError(f"model={_shown(model)}: it must be a torch.nn.Module. Give the module that is trained{hint}.")


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a torch module whose parameters lie whole on each rank.

    Raises:
        ValueError: where a lazy layer has not been called yet, so that its parameters have no shape.
    """
    check_module(model)
    assert isinstance(model, nn.Module)
    kinds = [getattr(sys.modules[place], name) for place, name in SHARDING if place in sys.modules]
    for kind in kinds:
        if any(isinstance(part, kind) for part in (*model.modules(), *model.parameters())):
            raise TypeError(
                f"model= of type {type(model).__name__}: its parameters must lie whole on each rank, and they are "
                f"split ({kind.__name__}, as by fully_shard, FullyShardedDataParallel or tensor parallelism). "
                "Only AdaptiveDataLoader on several ranks measures gradients in shards, and only those of fully_shard. "
                "Wrap it in torch.nn.parallel.DistributedDataParallel instead, or train with torch's own DataLoader"
            )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"model= has parameters of lazy layers that have no shape yet, as {lazy[0]!r}: call the model on a batch "
            "before, as `with torch.no_grad(): model(xb)`, and make the optimizer after that"
        )


def check_optimizer(optimizer: object, or_none: str = "") -> None:
    """Raise TypeError unless `optimizer` is one of torch's that can be hooked into.

    Args:
        optimizer: as given.
        or_none: says what None would stand for.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer={_shown(optimizer)}: it must be a torch.optim.Optimizer{or_none}{hint_of_fastai(optimizer)}"
        )
    if not all(isinstance(getattr(optimizer, hooks, None), dict) for hooks in HOOKS):
        raise TypeError(
            f"optimizer= of type {type(optimizer).__name__}: it must have torch's hooks around its step(), and this "
            "class makes none, because its __init__ does not call super().__init__(). If it wraps another optimizer, "
            "give the one that it wraps"
        )


def check_trains(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise ValueError unless the optimizer has a parameter of the model."""
    own = {id(p) for p in model.parameters()}
    if own and not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"optimizer= and model=: the {type(optimizer).__name__} has none of the {type(model).__name__}'s "
            "parameters, so its steps would not train it. Give the optimizer that was made from model.parameters(), "
            "and make it again where the model has been copied or built anew since"
        )


def check_batches(loader: object) -> None:
    """Raise TypeError unless `loader` can be iterated, and gives batches rather than a dataset's samples."""
    if not hasattr(type(loader), "__iter__") and not hasattr(type(loader), "__getitem__"):
        raise TypeError(f"loader={_shown(loader)}: it must be an iterable of batches. Give a DataLoader.")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):  # a stream may make batches itself
        raise TypeError(
            f"loader= is a dataset ({type(loader).__name__}), which gives samples one by one: it must give batches. "
            "Give DataLoader(dataset, batch_size, shuffle=True), or batch_size=None where each item is a batch"
        )


def check_dataset(dataset: object) -> None:
    """Raise TypeError unless `dataset` gives samples."""
    if isinstance(dataset, DataLoader):
        raise TypeError(
            "dataset= is a DataLoader, which gives batches: write AdaptiveDataLoader.from_loader(loader, model=model, "
            "optimizer=optimizer, ...), which takes over its dataset, order, workers and collation"
        )
    if not isinstance(dataset, IterableDataset) and not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"dataset={_shown(dataset)}: it must give samples, by __getitem__ and __len__ or as an IterableDataset"
        )


def check_needs_no_closure(optimizer: Optimizer, instead: str) -> None:
    """Raise TypeError if the optimizer's step() cannot be called without a function that computes the loss.

    Args:
        optimizer: one of torch's.
        instead: says what to give in its place.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer= is {type(optimizer).__name__}, whose step() has to be given a function that computes the loss "
            f"(closure), so its steps cannot be tried here: {instead}"
        )


def check_functions(name: str, functions: Sequence[object]) -> None:
    """Raise TypeError unless all of them can be called."""
    for function in functions:
        if not callable(function):
            raise TypeError(f"{name}={function!r}: it must be a function, or several")


def check_lr(lr: object) -> None:
    """Raise TypeError unless `lr` is a number, ValueError if it is negative or not finite."""
    if isinstance(lr, bool) or not isinstance(lr, (Real, Tensor)) or (isinstance(lr, Tensor) and lr.numel() != 1):
        raise TypeError(f"lr={_shown(lr)}: the learning rate must be a number of at least 0. None: no training")
    if not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr={lr!r}: the learning rate must be finite and at least 0. None: no training")


def hint_of_fastai(value: object) -> str:
    """The line to write where a part of a fastai Learner was given; empty for anything else."""
    if not any(cls.__module__.startswith("fastai.") for cls in type(value).__mro__):
        return ""
    return ". A Learner takes cbs=AdaptiveBatchSize() (of adaptbs.fastai), and has learn.bs_find()"


def _shown(value: object) -> str:
    """The value, or its type where it would fill a page."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"<{type(value).__name__}>"
