"""AdaptiveDataLoader in a loop with Hugging Face accelerate. The loop stays as it is.

    from adaptbs.accelerate import adaptive

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    loader = adaptive(accelerator, loader, model=model, optimizer=optimizer, scheduler=scheduler, epochs=5)

Tried with accelerate 1.10.1, 1.13.0 and 1.15.0. This file relies on these private names:

- `_is_accelerate_prepared` of a loader, which `prepare()` then hands back as it is, and of a model.
- `_dataloaders` and `_models` of an Accelerator: those that it has prepared.
- `_add_dataloader()` and `dataloader_references` of a GradientState: the loaders that are being iterated.
- `_custom_objects` of an Accelerator: those that it saves. `free_memory()` does not forget them.
- `base_dataloader` of a prepared loader, and `batch_sampler` of a BatchSamplerShard: the stock ones that they wrap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, SeedableRandomSampler
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import synchronize_rng_states
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ..loader import AdaptedLoader, cuts_as_torch, made_with, over_all
from .loader import AcceleratedLoader
from .saved_state import SavedState

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

REFUSED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")  # kinds of training whose gradients are not seen whole


def adaptive(
    accelerator: Accelerator,
    loader: DataLoader[Any],
    *,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    scheduler: AcceleratedScheduler | LRScheduler | None = None,
    epochs: int | None = None,
    **arguments: Any,
) -> AcceleratedLoader:
    """Make an adaptive loader to replace a stock one in a loop with `accelerator`.

    It is prepared already. `accumulate()`, `gather_for_metrics()`, `save_state()` and `load_state()` work with it as
    with any other. After `load_state()` it resumes within the epoch by itself, so no batches have to be skipped. The
    scheduler is always where it would be with the stock loader after as many samples.

    Args:
        accelerator: the loop's accelerator. Its `gradient_accumulation_steps` and `split_batches` are respected.
        loader: the stock DataLoader, prepared or not. It is not used any more.
        model, optimizer: as returned by `accelerator.prepare()`.
        scheduler: the scheduler that the loop steps, prepared or not; None if there is none.
        epochs: length of the run. None: read from the scheduler.
        arguments: arguments of AdaptiveDataLoader. `max_batch_size` and the batch size are those of one process, even
            with `split_batches`. `accumulation_steps` is for a loop that accumulates without `accumulate()`.

    Raises:
        TypeError, ValueError: if an argument cannot be used, with the line to write instead. Nothing is changed then.
    """
    _check(accelerator, loader, model, optimizer)
    _check_accumulation(accelerator, arguments.get("accumulation_steps"))
    stock = _stock(_prepared(accelerator, loader))
    generator = getattr(getattr(stock, "sampler", None), "generator", None)
    if generator is not None and accelerator.num_processes > 1:
        synchronize_rng_states(["generator"], generator)  # the stock loader does so when its iteration begins
    _seed_as_it_does(getattr(stock, "sampler", None))
    ours = AcceleratedLoader(
        accelerator, stock, model=model, optimizer=optimizer, scheduler=scheduler, epochs=epochs, **arguments
    )
    if loader in accelerator._dataloaders:
        accelerator._dataloaders.remove(loader)
    accelerator.prepare(ours)
    # Not as a stateful DataLoader: every process of a machine would write that into one file at the same time.
    saved = accelerator._custom_objects
    saved[:] = [each for each in saved if not isinstance(each, SavedState) or each.is_of(accelerator)]
    accelerator.register_for_checkpointing(SavedState(ours, saved))
    return ours


def _check(accelerator: Accelerator, loader: Any, model: Any, optimizer: Any) -> None:
    """Raise TypeError or ValueError if these arguments cannot be used together."""
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator={accelerator!r}: it must be an accelerate.Accelerator")
    kind = accelerator.distributed_type.value
    if kind in REFUSED:
        raise ValueError(
            f"accelerator: training by {kind} is not supported, because no process sees its gradient whole. Train with "
            "DistributedDataParallel, which accelerate uses without a plugin, or keep the stock loader"
        )
    line = "model, optimizer = accelerator.prepare(model, optimizer), before adaptive(...)"
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise TypeError(f"optimizer= of type {type(optimizer).__name__}: it has to be prepared: write {line}")
    if not isinstance(model, nn.Module) or not _is_prepared(accelerator, model):
        raise TypeError(f"model= of type {type(model).__name__}: it has to be prepared: write {line}")
    if isinstance(loader, AdaptedLoader):
        raise TypeError("loader= is adaptive already: give the stock DataLoader, once")
    dispatches = accelerator.dispatch_batches or type(loader) is DataLoaderDispatcher
    if dispatches and accelerator.num_processes > 1 and not isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "loader=: with dispatch_batches=True one process reads the batches of all, which are cut in advance: "
            "write Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False)), and let each "
            "process read its own"
        )
    if accelerator.split_batches and (size := _stock(loader).batch_size or 0) % accelerator.num_processes:
        raise ValueError(
            f"loader= has batch_size={size}: with split_batches=True that is shared by {accelerator.num_processes} "
            "processes, so it has to be a multiple of their number"
        )


def _check_accumulation(accelerator: Accelerator, given: int | None) -> None:
    """Raise ValueError if a number of batches of a step was given beside the accelerator's own."""
    by_itself = accelerator.gradient_accumulation_steps
    if given is not None and by_itself not in (1, given):
        raise ValueError(
            f"accumulation_steps={given}: accelerator.accumulate() makes a step of {by_itself} batches, as "
            "Accelerator(gradient_accumulation_steps=) says. Give accumulation_steps= only of a loop that accumulates "
            "without it"
        )


def _is_prepared(accelerator: Accelerator, model: Any) -> bool:
    if getattr(model, "_is_accelerate_prepared", False):
        return True
    # Older versions do not mark a model that they have wrapped.
    inner = accelerator.unwrap_model(model)
    return inner is not model and any(inner is prepared for prepared in accelerator._models)


def _prepared(accelerator: Accelerator, loader: Any) -> Any:
    """The loader as accelerate prepares it: with its sampler, and with the generators that it leaves it."""
    if hasattr(loader, "base_dataloader"):
        return loader
    made_with(loader)  # raises where its batches cannot be cut anew, which a prepared one would not show
    prepared = accelerator.prepare_data_loader(loader)
    accelerator._dataloaders.remove(prepared)
    return prepared


def _seed_as_it_does(sampler: Any) -> None:
    """Give accelerate's seedable sampler the generator that it makes when it is iterated.

    It would be given one of a seed that is drawn for it, and what the run draws afterwards would be other numbers.
    """
    if isinstance(sampler, SeedableRandomSampler) and sampler.generator is None:
        sampler.generator = torch.Generator().manual_seed(sampler.initial_seed)


def _stock(loader: Any) -> Any:
    """The DataLoader that the user made, from which accelerate has prepared `loader`."""
    base = getattr(loader, "base_dataloader", loader)
    batches: Any = getattr(base, "batch_sampler", None)
    if isinstance(batches, BatchSamplerShard):
        batches = batches.batch_sampler
    if getattr(base, "batch_size", None) is not None or not cuts_as_torch(batches):
        return base
    return over_all(base, batches)
