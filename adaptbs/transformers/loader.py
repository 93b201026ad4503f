"""The loader that replaces Trainer's own. It has the same length, and its batches grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler

from ..loader import AdaptedLoader, cuts_as_torch, over_all
from .plan import Plan


def unprepared(loader: Any) -> DataLoader[Any]:
    """The DataLoader over all of the data from which accelerate has prepared `loader`.

    Raises:
        TypeError, ValueError: if its batches cannot be cut anew.
    """
    base = getattr(loader, "base_dataloader", loader)
    if isinstance(getattr(base, "dataset", None), IterableDataset):
        raise TypeError(
            "train_dataset is an IterableDataset: its length is not known, and progress cannot be counted without "
            "it. Give a dataset with __len__ and __getitem__, or train with transformers.Trainer"
        )
    if not isinstance(base, DataLoader):
        raise TypeError(
            f"get_train_dataloader() has returned a {type(base).__name__}: AdaptiveTrainer cuts the batches of a "
            "torch.utils.data.DataLoader. Return one, or train with transformers.Trainer"
        )
    batches: Any = getattr(base.batch_sampler, "batch_sampler", base.batch_sampler)  # those of all processes
    if not cuts_as_torch(batches):
        raise ValueError(
            f"the batches are cut by a {type(batches).__name__}, as by train_sampling_strategy='batch_rebalance' or a "
            "batch sampler of the Trainer's own, and cannot change their size: take the default strategy and batch "
            "sampler, or train without AdaptiveTrainerMixin"
        )
    return over_all(base, batches)


class UpToTheEnd(Sampler[Any]):
    """A sampler's indices, cut in the run's last epoch to those that the run still takes.

    Args:
        sampler: the sampler of whole epochs.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._length = len(sampler)

    def begin_epoch(self, left: int) -> None:
        """Let the next epoch have at most `left` indices."""
        self._length = min(len(self._sampler), max(left, 0))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for _, index in zip(range(self._length), self._sampler, strict=False):
            yield index


class TrainLoader:
    """Has the stock loader's length, by which Trainer plans. From `begin` on it delivers batches that grow.

    Args:
        stock: the loader made by Trainer.

    Attributes:
        plain: the stock DataLoader, but over the data of all processes.
        dataset: the dataset.
        batch_size: samples of a batch of this process at the start.
        sampler: the stock sampler, cut at the end of the run.
    """

    def __init__(self, stock: Any) -> None:
        self._stock, self.plain = stock, unprepared(stock)
        self.dataset, self.batch_size = self.plain.dataset, int(self.plain.batch_size or 1)
        self.sampler = UpToTheEnd(self.plain.sampler)
        self._begun: tuple[AdaptedLoader, Plan] | None = None
        self._batches: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return len(self._stock)

    def begin(self, adaptive: AdaptedLoader, plan: Plan) -> None:
        """Deliver the batches of an adaptive loader from here on, for a run of this plan."""
        self._begun = adaptive, plan

    @property
    def has_begun(self) -> bool:
        """True from `begin` on."""
        return self._begun is not None

    @property
    def adaptive(self) -> AdaptedLoader:
        """The loader that delivers the batches."""
        return self._known()[0]

    @property
    def plan(self) -> Plan:
        """The fixed run."""
        return self._known()[1]

    def _known(self) -> tuple[AdaptedLoader, Plan]:
        if self._begun is None:
            raise RuntimeError("the loader of an AdaptiveTrainer delivers batches within train() alone")
        return self._begun

    @property
    def _epoch(self) -> int:
        return self.adaptive.training_run.controller.progress_tracker.epoch

    @property
    def samples(self) -> int:
        """Samples of the run so far, on all processes."""
        return self.adaptive.training_run.controller.progress_tracker.samples

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch's number on to the sampler: the run's own, once it has begun."""
        if hasattr(self._stock, "set_epoch"):
            self._stock.set_epoch(self._epoch if self.has_begun else epoch)

    def __iter__(self) -> Iterator[Any]:
        self.sampler.begin_epoch(self.plan.samples - self._epoch * self.plan.epoch_samples)
        self._batches = iter(self.adaptive)
        return self._batches

    def delivers(self, batches: Any) -> bool:
        """True if these are the batches of the latest iteration."""
        return self.has_begun and batches is self._batches

    @property
    def ends_step(self) -> bool:
        """True if the batch delivered last is the last of its optimizer step."""
        return self.adaptive.training_run.tracker.current.ends_step or not self.adaptive.batches_left

    def end_step(self) -> None:
        """Record an optimizer step. After the last one of an epoch, end the iteration."""
        if not self.adaptive.batches_left:
            next(self._batches, None)
