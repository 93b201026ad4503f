"""The loader that replaces Trainer's own. It has the same length, and its batches grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ..loader import AdaptedLoader, cuts_as_torch, over_all
from .plan import Plan
from .sampler import UpToTheEnd


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


class EpochOrLook:
    """An iteration over a TrainLoader: an epoch of the run, or a look at batches of the stock loader.

    It is an epoch if Trainer's loop makes a step of it, which `TrainLoader.makes_steps_of` says.

    Args:
        loader: the loader.
    """

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader
        self._batches: Iterator[Any] | None = None  # None until the first is asked for

    @property
    def has_begun(self) -> bool:
        """True once a batch was asked for."""
        return self._batches is not None

    def deliver(self, batches: Iterator[Any]) -> None:
        """Let the iteration have these batches."""
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = iter(self._loader.stock)
        return next(self._batches)


class TrainLoader:
    """Has the stock loader's length, by which Trainer plans. From `begin` on it delivers batches that grow.

    Whoever else iterates it, before the run or within, is given the stock loader's batches.

    Args:
        stock: the loader made by Trainer.

    Attributes:
        stock: that loader.
        plain: the stock DataLoader, but over the data of all processes.
        dataset: the dataset.
        batch_size: samples of a batch of this process at the start.
        up_to_the_end: the stock sampler, cut at the end of the run.

    What else it is asked for, as by a callback, are the attributes of the stock loader.
    """

    def __init__(self, stock: Any) -> None:
        self.stock, self.plain = stock, unprepared(stock)
        self.dataset, self.batch_size = self.plain.dataset, int(self.plain.batch_size or 1)
        self.up_to_the_end = UpToTheEnd(self.plain.sampler)
        self._begun: tuple[AdaptedLoader, Plan] | None = None
        self._epoch_or_look: EpochOrLook | None = None  # of the epoch under way
        self._batches: Any = iter(())  # the adaptive loader's iteration
        self._missing = self._skipped = 0  # samples and steps that epochs lacked which were broken off
        self._made = 0  # the fixed run's step after the latest step of the optimizer

    def __len__(self) -> int:
        return len(self.stock)

    def __getattr__(self, name: str) -> Any:
        if name == "stock":  # it has not been made yet, as in a copy
            raise AttributeError(name)
        return getattr(self.stock, name)

    def begin(self, adaptive: AdaptedLoader, plan: Plan, saved: dict[str, Any] | None) -> None:
        """Deliver the batches of an adaptive loader from here on, for a run of this plan.

        Args:
            adaptive: the loader.
            plan: the plan.
            saved: `state_dict()` of the run that goes on; None: it begins.
        """
        self._begun = adaptive, plan
        if saved is not None:
            self._missing, self._skipped = saved.pop("missing", 0), saved.pop("skipped", 0)
            adaptive.load_state_dict(self._lengthened(saved))
            self._made = self.step

    def _lengthened(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved run's state, in which an epoch that it had ended within goes on if this run is longer."""
        plan, end, sampler = self.plan, saved.pop("end", None), saved.pop("sampler", None)
        if sampler is None or end is None:
            return saved
        more = plan.samples - end
        if more > 0 and len(sampler["beyond"]) and plan.batch_samples > self.batch_size:
            raise ValueError(
                "resume_from_checkpoint: the saved run was to end within this epoch, and this run is longer. On "
                "several processes such an epoch cannot go on: resume with the saved run's max_steps or "
                "num_train_epochs, or from a checkpoint of an epoch before"
            )
        if more > 0 and plan.ends_with_an_epoch:
            more = len(sampler["beyond"])  # of which the last, short batch is dropped by the loader
        batch = self.batch_size if self.plain.drop_last else 1
        return self.up_to_the_end.lengthened(sampler, saved, more, batch)

    def state_dict(self) -> dict[str, Any]:
        """State of the run."""
        state = self.adaptive.state_dict()  # which reads the sampler up to the end
        state |= {"missing": self._missing, "skipped": self._skipped + self._unmade}
        return {**state, "end": self.plan.samples, "sampler": self.up_to_the_end.state_dict()}

    def close(self) -> None:
        """End the run. If it was broken off within a step, no hook of that step stays on the model."""
        self._epoch_or_look = None
        if (close := getattr(self._batches, "close", None)) is not None:
            close()
        if self._begun is not None:
            self.adaptive.close()

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
            raise RuntimeError("no run has begun")
        return self._begun

    @property
    def _epoch(self) -> int:
        return self.adaptive.training_run.controller.progress_tracker.epoch

    @property
    def samples(self) -> int:
        """Samples of the fixed run, on all processes, at the place that this run has come to."""
        return self.adaptive.training_run.controller.progress_tracker.samples + self._missing

    @property
    def step(self) -> int:
        """Steps that the fixed run has made by now."""
        return self.plan.steps(self.samples) - self._skipped

    @property
    def epoch(self) -> float:
        """The fixed run's `state.epoch` by now."""
        return self.plan.epoch(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch's number on to the sampler: the run's own, once it has begun."""
        self._end_epoch()
        if hasattr(self.stock, "set_epoch"):
            self.stock.set_epoch(self._epoch if self.has_begun else epoch)

    def __iter__(self) -> Iterator[Any]:
        return EpochOrLook(self)

    def makes_steps_of(self, batches: Any) -> bool:
        """Begin an epoch if an iteration of this loader is about to be trained on. False if these are other batches."""
        if not self.has_begun or not isinstance(batches, EpochOrLook):
            return False
        if batches is not self._epoch_or_look:
            if batches.has_begun:  # a look, which goes on
                return False
            self._end_epoch()
            epoch_samples = self.plan.epoch_samples
            self.up_to_the_end.begin_epoch(self.plan.samples - self._epoch * epoch_samples, epoch_samples)
            self._batches, self._epoch_or_look = iter(self.adaptive), batches
            batches.deliver(self._batches)
        return True

    def _end_epoch(self) -> None:
        """End the epoch under way, which may be broken off, and count what it lacks."""
        if self._epoch_or_look is None:
            return
        self._epoch_or_look, close = None, getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._missing += max(self._epoch * self.plan.epoch_samples - self.samples, 0)
        self._skipped += self._unmade

    @property
    def _unmade(self) -> int:
        """Steps that samples stand for but the optimizer has not made, as where an epoch was broken off in mid-step."""
        return self.step - self._made

    @property
    def ends_step(self) -> bool:
        """True if the batch delivered last is the last of its optimizer step."""
        return self.adaptive.training_run.tracker.current.ends_step or not self.adaptive.batches_left

    def end_step(self) -> None:
        """Record an optimizer step. After the last one of a whole epoch, end the iteration.

        An epoch within which the run ends may go on in a longer run.
        """
        if not self.up_to_the_end.cuts:
            self.end_iteration()
        self._made = self.step

    def end_iteration(self) -> None:
        """Be done with the latest batch, if it is the last."""
        if not self.adaptive.batches_left:
            next(self._batches, None)
