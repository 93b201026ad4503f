"""The loader's own arguments, and their checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, IterableDataset

from ..checks import check_dataset, check_model, check_optimizer, check_size, check_trains
from ..gradients import IN_STEP, is_sharded, why_loss_is_needed, why_shards_are_unseen
from ..model import has_static_shapes
from ..ranks import Ranks
from ..run import Settings, SharedArguments
from .scheduler_steps import total_of

log = logging.getLogger(__name__)


class LoaderArguments(SharedArguments, total=False):
    """The keyword arguments of AdaptiveDataLoader beside its own: the shared ones, and DataLoader's."""

    batch_sampler: None
    num_workers: int
    collate_fn: Callable[[list[Any]], Any] | None
    pin_memory: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory_device: str
    in_order: bool


@dataclass(frozen=True, kw_only=True)
class Given:
    """The arguments of an AdaptiveDataLoader, as given; see there.

    Attributes:
        settings: the shared ones.
        stock: DataLoader's that are not named here.
    """

    dataset: Dataset[Any]
    batch_size: int
    shuffle: bool | None
    sampler: Any
    model: nn.Module
    optimizer: Optimizer
    loss_func: Callable[..., Tensor] | None
    batch_loss: Callable[[nn.Module, Any], Tensor] | None
    autocast: Callable[[], AbstractContextManager[Any]] | None
    scheduler: LRScheduler | None
    epochs: int | None
    accumulation_steps: int
    rank: int | None
    world_size: int | None
    drop_last: bool
    generator: torch.Generator | None
    settings: Settings
    stock: dict[str, Any]

    def with_plain_numbers(self) -> Given:
        """The same, with Python's numbers for those of other libraries, which torch.load refuses in a state."""
        epochs = None if self.epochs is None else int(self.epochs)
        return replace(
            self, batch_size=int(self.batch_size), accumulation_steps=int(self.accumulation_steps), epochs=epochs
        )  # fmt: skip


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimizer steps."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def check(given: Given) -> None:
    """Raise ValueError or TypeError for arguments that cannot be."""
    model, optimizer, scheduler = given.model, given.optimizer, given.scheduler
    if given.stock.get("batch_sampler") is not None:
        raise ValueError("batch_sampler= fixes the batches, so they cannot grow: give sampler= or shuffle=")
    if not given.stock.get("in_order", True):
        raise ValueError("in_order=False is not supported: batch sizes are matched by order. Leave it True.")
    check_dataset(given.dataset)
    check_size("batch_size", given.batch_size)
    check_size("accumulation_steps", given.accumulation_steps)
    if given.epochs is not None:
        check_size("epochs", given.epochs)
    if not isinstance(model, nn.Module) or not is_sharded(model):  # `check_shards` is about those
        check_model(model)
    check_optimizer(optimizer)
    if scheduler is not None:
        check_scheduler(scheduler)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model has no trainable parameter: there is no gradient to measure the noise of")
    check_trains(optimizer, model)
    if scheduler is not None and not _schedules(scheduler, optimizer):
        raise ValueError(
            f"scheduler= and optimizer=: the {type(scheduler).__name__} sets the learning rate of another optimizer. "
            "Give the scheduler that was made from this one, or the optimizer that it was made from"
        )


def check_measurable(model: nn.Module, parameters: Sequence[nn.Parameter], settings: Settings) -> None:
    """Raise ValueError if measuring this model needs its loss, which was not given."""
    if not settings.measures:
        return
    views = settings.metric != "plain" or settings.by_group
    why = why_loss_is_needed(model, parameters, choice=settings.source, views=views)
    if why is not None:
        raise ValueError(
            f"this model cannot be measured in the step that trains ({why}): give loss_func=, called as "
            "loss_func(model(*inputs), target) on a batch (*inputs, target), or batch_loss=(model, batch) -> loss, and "
            "it is measured by halves of a batch; or overhead=0, which measures nothing and holds the batch"
        )


def advise_whole_batches(model: nn.Module) -> None:
    """Warn of a short batch at each pass's end, for which a model is compiled that takes static shapes alone."""
    if has_static_shapes(model):
        log.warning(
            "the model is compiled with dynamic=False, so also for the shorter batch at the end of each pass: "
            "drop_last=True leaves that out"
        )


def check_scheduler(scheduler: Any) -> None:
    """Raise TypeError unless it is a scheduler of torch, or one that is told its updates, as timm's are."""
    if isinstance(scheduler, LRScheduler):
        return
    if callable(getattr(scheduler, "step", None)) and callable(getattr(scheduler, "step_update", None)):
        return
    shown = repr(scheduler) if isinstance(scheduler, str) else f"<{type(scheduler).__name__}>"
    inner = [name for name, value in getattr(scheduler, "__dict__", {}).items() if isinstance(value, LRScheduler)]
    advice = (
        f"Give the one that it wraps, scheduler.{inner[0]}, whose step() it calls"
        if inner
        else "Of one that sets the learning rate by a count of its own, compute the rate in the loop by "
        "loader.progress, which is 0..1 over the run, and leave scheduler= out"
    )
    raise TypeError(
        f"scheduler={shown}: it must be a torch.optim.lr_scheduler.LRScheduler, or have timm's step(epoch) and "
        f"step_update(num_updates). {advice}"
    )


def _schedules(scheduler: LRScheduler, optimizer: Optimizer) -> bool:
    """True if the scheduler's learning rates are the optimizer's, also where one optimizer wraps the other."""
    its = getattr(scheduler, "optimizer", optimizer)
    if its is optimizer:
        return True
    groups = {id(group) for group in optimizer.param_groups}
    return any(id(group) in groups for group in getattr(its, "param_groups", ()))


def check_shards(model: nn.Module, ranks: Ranks) -> None:
    """Raise TypeError for a model under `fully_shard` whose gradients cannot be measured."""
    if not is_sharded(model):
        return
    if not ranks.connected:
        check_model(model)
    if (why := why_shards_are_unseen(model, ranks.world_size)) is not None:
        raise TypeError(f"model= of type {type(model).__name__}: {why}")


def check_ranks(given: Given, ranks: Ranks) -> None:
    """Raise ValueError or TypeError for what several ranks cannot do; collective."""
    dataset, settings = given.dataset, given.settings
    check_shards(given.model, ranks)
    if ranks.world_size == 1:
        return
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "dataset is an IterableDataset, whose shards may end at different times, and then ranks wait for ever: "
            "give several ranks a map-style dataset"
        )
    if not ranks.connected and (settings.measures or settings.step_time is None):
        raise ValueError(
            f"world_size={ranks.world_size} without a process group: the ranks cannot agree on what they measure: "
            "call torch.distributed.init_process_group() before, or give overhead=0 and step_time=(a, b), with which "
            "nothing is read that differs between them"
        )
    if settings.measures and (settings.source != "auto" or settings.metric != "plain" or settings.by_group):
        raise ValueError(
            "source=, metric= and by_group=: several ranks measure by their own gradients, "
            "and the plain noise scale only: leave them out"
        )
    ranks.check_alike(_compared(given), "give every rank the same arguments")


def _compared(given: Given) -> dict[str, object]:
    """The arguments that ranks compare. One with others would wait where the rest do not, or step at another rate.

    `log=` is left out, as a script may give it to rank 0 alone.
    """
    settings, stock = given.settings, given.stock
    generators = (given.generator, getattr(given.sampler, "generator", None))
    shared = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "log"}
    compared = {
        "batch_size": given.batch_size, "accumulation_steps": given.accumulation_steps, "epochs": given.epochs,
        "drop_last": given.drop_last, "the length of the dataset": len(cast(Sized, given.dataset)),
        "shuffle": bool(given.shuffle),
        "sampler": None if given.sampler is None else type(given.sampler).__name__,  # which may be a list
        "scheduler": given.scheduler, "the length of the scheduler": total_of(given.scheduler),
        "optimizer": given.optimizer,
        "loss_func": given.loss_func, "batch_loss": given.batch_loss, "autocast": given.autocast,
        # A new size arrives as many batches later as workers have fetched ahead.
        "num_workers": stock.get("num_workers", 0), "prefetch_factor": stock.get("prefetch_factor") or 0,
        **shared, "overhead": settings.overhead_for(IN_STEP), "transfer": tuple(sorted(settings.following)),
    }  # fmt: skip
    return {
        **{name: _by_type(value) for name, value in compared.items()},
        "whether a generator is given": any(generator is not None for generator in generators),
    }


def _by_type(value: object) -> object:
    """A value that can be compared in another process: for a function or a scheduler the name of its type."""
    if isinstance(value, tuple):
        return tuple(map(_by_type, value))
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else type(value).__name__
