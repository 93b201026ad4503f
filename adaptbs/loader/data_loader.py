"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from ..run import RunReport, Settings, TrainingRun, shows_shared_arguments
from .arguments import Given
from .loop_facts import UNKNOWN, LoopFacts
from .make_session import make_session
from .misuse import is_trainer, refused_to_trainer
from .session import LoaderSession
from .stock_loader import made_with

PREPARED = (
    "accelerator.prepare() cannot take an AdaptiveDataLoader, whose batches it would cut itself: prepare the stock "
    "DataLoader with the rest, and then write loader = adaptbs.accelerate.adaptive(accelerator, loader, model=model, "
    "optimizer=optimizer, scheduler=scheduler, epochs=...)"
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import LoaderArguments


@shows_shared_arguments
class AdaptiveDataLoader(RunReport, DataLoader[Any]):
    """In place of `torch.utils.data.DataLoader`: measures the noise scale and grows the batch toward it.

    Iterate over it as over a DataLoader and train as ever: `optimizer.step()` finds its hyperparameters set for the
    batch, and `scheduler.step()`, called where it always was, ends where it would have ended.

    Some of the steps are measured while they happen, by hooks on the model's layers. A model that cannot be measured in
    its step, such as one with BatchNorm, is measured by halves of a batch in a pass of its own, for which the loss has
    to be given. That pass leaves `.grad`, buffers and random states as they were.

    Args:
        dataset: a dataset with a length. For an IterableDataset an estimate will do.
        batch_size: the size to start with, samples of a batch as it is delivered (to each rank, where there are
            several).
        shuffle, sampler, drop_last, and every other argument of DataLoader: as there. With `drop_last` an epoch
            delivers as many samples as a DataLoader of the starting size would.
        model: the model being trained.
        optimizer: the optimizer whose hyperparameters follow the batch.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`. Needed only for a model
            that cannot be measured in its training step, and for `step()`; an error says so and names the layer. Given,
            larger batches are tried for memory before they are delivered (not on a CPU, where running out would end the
            process), and a loss that couples samples is noticed.
        batch_loss: called as `batch_loss(model, batch)`, for any other layout; instead of `loss_func`.
        autocast: makes the context that the forward pass runs under, as `lambda: torch.autocast("cuda")`.
        scheduler: a torch LR scheduler that the loop steps, per batch or per epoch.
        epochs: length of the run; read from the scheduler's `total_steps` or `T_max` where None.
        accumulation_steps: batches that the loop accumulates gradients of before it calls `optimizer.step()`.
        rank, world_size: which process of how many this is. None: as torch's default process group says, if there is
            one. Each is delivered its slice of every batch, and all of them decide alike (docs/ranks.md).
        shared arguments: documented by `Settings`.

    Raises:
        ValueError, TypeError: for arguments that cannot be; nothing has been changed then.
    """

    _session: LoaderSession
    _facts: LoopFacts = UNKNOWN  # of the loop, where an adapter states them

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        loss_func: Callable[..., Tensor] | None = None,
        batch_loss: Callable[[nn.Module, Any], Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
        scheduler: LRScheduler | None = None,
        epochs: int | None = None,
        accumulation_steps: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        **stock: Unpack[LoaderArguments],
    ) -> None:
        others: dict[str, Any] = dict(stock)
        given = Given(
            dataset=dataset, batch_size=batch_size, shuffle=shuffle, sampler=sampler, drop_last=drop_last,
            generator=generator, model=model, optimizer=optimizer, loss_func=loss_func, batch_loss=batch_loss,
            autocast=autocast, scheduler=scheduler, epochs=epochs, accumulation_steps=accumulation_steps,
            rank=rank, world_size=world_size, settings=Settings.taken_from(others), stock=others,
        )  # fmt: skip
        self._session = make_session(given, self._facts)
        source = self._session.source
        others.pop("batch_sampler", None)
        if source.streams:  # DataLoader takes no batch sampler then, but asks its own one in the same way.
            start = int(batch_size)
            super().__init__(dataset, start, shuffle, sampler, drop_last=drop_last, generator=generator, **others)
        else:
            super().__init__(dataset, batch_sampler=source.batch_sampler, generator=generator, **others)
            # It leaves these at their defaults beside a batch sampler, and forbids to assign them.
            self.__dict__.update(sampler=source.order, drop_last=drop_last)
        self.__dict__["batch_sampler"] = source.batch_sampler
        # Last, so that an argument refused above has changed nothing of the user's.
        self._session.follow()

    @classmethod
    def from_loader(cls, loader: DataLoader[Any], **arguments: Any) -> AdaptiveDataLoader:
        """An adaptive loader in place of an existing one: its dataset, order, workers and collation are taken over.

        Args:
            loader: not used any more; its batch size is the one to start with.
            arguments: of AdaptiveDataLoader; they go before what the loader was made with.

        Raises:
            TypeError, ValueError: where its batches cannot be cut anew.
        """
        return cls(**{**made_with(loader), **arguments})

    def epochs(self, n: int) -> Iterator[int]:
        """The epochs of a run planned to take `n`: `for epoch in loader.epochs(5): for batch in loader: ...`.

        With `budget="progress"` each of them is an equal share of the run's progress. Larger batches bring less a
        sample, so a share may take more than one pass over the data, together at most (1 + `max_extra`) times the
        planned samples. A resumed run goes on with the epoch that it had come to.

        Raises:
            ValueError: where `epochs=` or the scheduler has said another length.
        """
        return self._session.epochs(n)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """An epoch's batches, their size changing on the way; see `epochs` for where it ends."""
        if is_trainer(sys._getframe(1).f_globals.get("__name__", "")):
            return refused_to_trainer()
        return self._session.iterate(self._fetch)

    def step(self, batch: Any, scaler: Any = None, before_step: Callable[[], None] | None = None) -> Tensor:
        """Train on a delivered batch: forward, backward, `optimizer.step()`, `zero_grad()`; its loss, detached.

        Where memory runs out, the same samples are run again in halves, whose gradients add up to the batch's, and the
        batches to come are cut smaller. BatchNorm and dropout see the pieces (docs/memory.md).

        Args:
            batch: as delivered; or changed, but with samples along the first dimension.
            scaler: a `torch.amp.GradScaler`, for float16.
            before_step: called between the backward pass and the optimizer's step, as to clip gradients.

        Raises:
            ValueError: where the loader was given no loss; NotImplementedError: on several ranks.
        """
        return self._session.step(batch, scaler, before_step)

    def plain_batches(self) -> Iterator[Any]:
        """Batches of the size of now, that are neither counted nor measured: for looking at the data."""
        return iter(self._fetch())

    def _fetch(self) -> Iterator[Any]:
        with self._session.source.opened():
            return super().__iter__()

    def __len__(self) -> int:
        """Batches of this epoch: those delivered so far, and those left at the size of now.

        So `i + 1 == len(loader)` holds at the last batch alone, and a sum over the epoch divided by `len(loader)` is
        its mean, until the next epoch begins. Before the first epoch it is what a stock loader says.
        """
        return self._session.length

    @property
    def progress(self) -> float | None:
        """Share of the run done, 0..1, the current batch included; None where its length is not known."""
        self._session.misuse.progress_was_read()
        return super().progress

    @property
    def training_run(self) -> TrainingRun:
        """The run behind this loader, for tools that look inside or simulate."""
        return self._session.run

    @property
    def batch_size(self) -> int:
        """The size of the batches that are cut now, samples."""
        controller = self.training_run.controller
        return controller.batch_size // controller.batches_per_step

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        return None  # DataLoader's __init__ stores None here: a batch sampler decides. Later it refuses to be set.

    @property
    def global_batch_size(self) -> int:
        """The size of the optimizer steps that are cut now, samples."""
        return self.training_run.controller.batch_size

    @property
    def lr_factor(self) -> float:
        """The factor of the learning rate by its rule, for the delivered batch.

        Inside the optimizer's step SGD's may be less, and Adam's bias correction comes on top (docs/transfer.md).
        """
        return self._session.run.scale().lr_factor

    def close(self) -> None:
        """Leave optimizer and scheduler as they were found: they no longer follow, and this loader is at its end."""
        self._session.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, after any batch: numbers, strings, tensors and containers of them.

        Saved together with the model, the optimizer, the scheduler and `torch.get_rng_state()`, a new process goes on
        as if nothing had happened (docs/checkpoints.md).
        """
        return self._session.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration delivers what was left of the epoch.

        Raises:
            ValueError: saying what differs, where the loader is not one of the same run; nothing has changed then.
        """
        self._session.load_state_dict(state)

    @property
    def _is_accelerate_prepared(self) -> bool:
        """Asked by accelerate alone, which would build a DataLoader of fixed batches around the batch sampler."""
        raise TypeError(PREPARED)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy would grow its batch, and no optimizer would follow.
        raise TypeError(
            "an AdaptiveDataLoader cannot be copied or pickled, as it belongs to its model and optimizer: "
            "build another with theirs, and hand it state_dict() by load_state_dict()"
        )
