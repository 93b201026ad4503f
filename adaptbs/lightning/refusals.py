"""Refuses a fit in which the batch cannot grow, before the first batch, and says what to write instead."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ..loader import AdaptiveDataLoader, made_with

LEAVE_OUT = "or leave AdaptiveBatchSize out of callbacks="
CHANGES_THE_LOOP = {
    "StochasticWeightAveraging": "it makes a pass of its own at the end: use torch.optim.swa_utils in the module",
    "GradientAccumulationScheduler": "the batches of an optimizer step change on the way: leave it out, as the batch "
    "grows by itself; Trainer(accumulate_grad_batches=) is taken into account",
    "BatchSizeFinder": "it sets the batch size itself: find it in a fit of its own",
}


def check(trainer: Any, loaders: list[Any]) -> DataLoader[Any]:
    """Check a fit, and return its one stock loader.

    Raises:
        NotImplementedError, ValueError, TypeError: if the batch cannot grow in this fit.
    """
    _check_trainer(trainer)
    if len(loaders) != 1:
        raise NotImplementedError(
            f"the fit has {len(loaders)} train loaders, whose batches would have to grow together. Give one loader "
            "whose samples are taken from all datasets, as DataLoader(StackDataset(a=..., b=...), batch_size=..., "
            f"shuffle=True) with torch.utils.data.StackDataset; {LEAVE_OUT}"
        )
    loader = _stock_loader(loaders[0])
    _check_data(trainer, loader)
    return loader


def _stock_loader(loader: Any) -> DataLoader[Any]:
    """The loader itself. Raises an error unless it is a stock one whose batches can be cut anew."""
    if isinstance(loader, AdaptiveDataLoader):
        raise TypeError(
            "train_dataloaders= is an AdaptiveDataLoader: give the Trainer the stock loader, as "
            "trainer.fit(model, DataLoader(dataset, batch_size=..., shuffle=True)); AdaptiveBatchSize() takes the "
            "arguments that AdaptiveDataLoader took"
        )
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"the train loader is a {type(loader).__name__}, whose batches cannot be cut anew: give a "
            f"torch.utils.data.DataLoader(dataset, batch_size=...), {LEAVE_OUT}"
        )
    try:
        made_with(loader)
    except (TypeError, ValueError) as error:
        reason, _, _ = str(error).partition(": build AdaptiveDataLoader")
        raise type(error)(
            f"{reason}: give the Trainer a DataLoader(dataset, batch_size=..., shuffle=True), or one with sampler=, "
            f"{LEAVE_OUT}"
        ) from None
    return loader


def _check_data(trainer: Any, loader: DataLoader[Any]) -> None:
    """Raise an error unless the data have a length, and are shared by the processes as expected."""
    streams = isinstance(loader.dataset, IterableDataset)
    if not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"the dataset, a {type(loader.dataset).__name__}, has no length: the batch grows by shares of the data. "
            f"Give it a __len__ (of an IterableDataset an estimate will do), {LEAVE_OUT}"
        )
    if trainer.world_size > 1 and not streams and not isinstance(loader.sampler, DistributedSampler):
        raise ValueError(
            f"use_distributed_sampler=False, and the loader has a {type(loader.sampler).__name__}, so that each of "
            f"{trainer.world_size} processes goes through all data: leave use_distributed_sampler at True, or give "
            "DataLoader(dataset, batch_size=..., sampler=DistributedSampler(dataset))"
        )
    if streams and trainer.limit_train_batches != 1.0:
        raise ValueError(
            f"limit_train_batches={trainer.limit_train_batches} of an IterableDataset: let the dataset yield fewer "
            f"samples, and its __len__ say so, {LEAVE_OUT}"
        )


def _check_trainer(trainer: Any) -> None:
    """Raise an error unless the Trainer's strategy, optimizers and callbacks go with a batch that grows."""
    strategy = trainer.strategy
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    if not {"SingleDeviceStrategy", "DDPStrategy"} & set(kinds):
        raise NotImplementedError(
            f"strategy {kinds[0]}: the noise scale is measured on one device or under DistributedDataParallel: write "
            f"Trainer(strategy='ddp'), {LEAVE_OUT}"
        )
    if len(trainer.optimizers) != 1:
        raise NotImplementedError(
            f"configure_optimizers() returns {len(trainer.optimizers)} optimizers, as for a GAN. Each has a noise "
            "scale of its own, and there is one batch for all. Train with a fixed batch: leave AdaptiveBatchSize out "
            "of callbacks=; if one optimizer is enough, give it several parameter groups, as Adam([{...}, {...}])"
        )
    if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise NotImplementedError(
            "training_step(self, dataloader_iter) fetches batches by itself, so it is not known which batch a step "
            f"belongs to: write training_step(self, batch, batch_idx), {LEAVE_OUT}"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        raise NotImplementedError(
            f"reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs}: a new loader would begin "
            f"at the first batch size again. Write 0 and let the dataset change what it returns, {LEAVE_OUT}"
        )
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in CHANGES_THE_LOOP:
                raise NotImplementedError(
                    f"{kind.__name__} beside AdaptiveBatchSize: {CHANGES_THE_LOOP[kind.__name__]}, {LEAVE_OUT}"
                )
