"""Reads from a stock DataLoader the arguments that make another one like it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ..checks import hint_of_fastai

PREPARED = (
    "loader= has been prepared by accelerate, which deals its batches out itself. Write loader = "
    "adaptbs.accelerate.adaptive(accelerator, loader, model=model, optimizer=optimizer, scheduler=scheduler, "
    "epochs=...) in place of AdaptiveDataLoader"
)

_SHARED = (
    "dataset", "batch_size", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip

_ITERATION = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation")  # what decides how DataLoader iterates


def cuts_as_torch(batches: Any) -> bool:
    """True of torch's BatchSampler, and of a subclass that cuts batches and counts them as that does."""
    kind = type(batches)
    return (
        isinstance(batches, BatchSampler)
        and kind.__iter__ is BatchSampler.__iter__
        and kind.__len__ is BatchSampler.__len__
    )


def over_all(loader: DataLoader[Any], batches: BatchSampler) -> DataLoader[Any]:
    """The same DataLoader over all batches, as it was before a library dealt them out to processes.

    Args:
        loader: the library's.
        batches: all processes' batches.
    """
    same = {name: getattr(loader, name) for name in _SHARED if hasattr(loader, name)}
    return DataLoader(
        **{**same, "batch_size": batches.batch_size, "sampler": batches.sampler, "drop_last": batches.drop_last}
    )


def made_with(loader: DataLoader[Any]) -> dict[str, Any]:
    """The arguments that make a DataLoader like this one.

    Raises:
        TypeError, ValueError: where its batches cannot be cut anew.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader={loader!r}: it must be a torch.utils.data.DataLoader{hint_of_fastai(loader)}")
    if hasattr(loader, "base_dataloader"):
        raise TypeError(PREPARED)
    batches: Any = loader.batch_sampler
    if batches is None and isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "the loader does not batch, as its dataset yields whole batches, so there are no batches to grow: let the "
            "dataset yield single samples (WebDataset without .batched()), give it a __len__ in samples, and build "
            "AdaptiveDataLoader from it, with batch_size="
        )
    if loader.batch_size is None and not cuts_as_torch(batches):
        what = "does not batch" if loader.batch_sampler is None else "has a batch_sampler= of its own"
        raise ValueError(
            f"the loader {what}, so there are no batches to grow: "
            "build AdaptiveDataLoader from its dataset, with batch_size= and sampler= or shuffle="
        )
    if not cuts_as_torch(batches):
        raise ValueError(
            f"the loader's batches are cut by a {type(batches).__name__}, which cannot change their size: "
            "build AdaptiveDataLoader from its dataset"
        )
    if own := [name for name in _ITERATION if getattr(type(loader), name) is not getattr(DataLoader, name)]:
        raise TypeError(
            f"loader= of type {type(loader).__name__}: this class has a {own[0]} of its own, by which it makes or "
            "hands on batches. An AdaptiveDataLoader makes them as torch's DataLoader does, so what it adds would be "
            "lost without a word: build AdaptiveDataLoader from its dataset, and do what it adds in the dataset, in "
            "collate_fn= or in the loop (to go on in mid-epoch, AdaptiveDataLoader has its own state_dict())"
        )
    made = {name: getattr(loader, name) for name in _SHARED if hasattr(loader, name)}
    if not isinstance(loader.dataset, IterableDataset):
        made |= {"sampler": batches.sampler, "batch_size": batches.batch_size, "drop_last": batches.drop_last}
    return made
