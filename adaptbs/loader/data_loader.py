"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from ..gradients import NoiseMeter, views_of
from ..hyperparameters import is_adaptive
from ..model import BatchLoss
from ..ranks import Ranks
from ..run import Controller, RunReport, Settings
from ..sampling import EpochSource
from ..types import LRRule, Target
from .arguments import check, check_ranks, made_with
from .ranks import RankMeter
from .scheduler import SchedulerDriver, drive, run_epochs
from .session import LoaderSession


class AdaptiveDataLoader(RunReport, DataLoader[Any]):
    """In place of `torch.utils.data.DataLoader`: measures the noise scale and grows the batch toward it.

    Iterate over it as over a DataLoader and train as ever: `optimizer.step()` finds its hyperparameters set for the
    batch, and `scheduler.step()`, called where it always was, ends where it would have ended.

    Measuring takes passes of its own through `loss_func` on some of the batches, before they are delivered; `.grad`,
    buffers and random states do not notice.

    Args:
        dataset: with a length; of an IterableDataset an estimate will do.
        batch_size: to start with, samples of a batch as it is delivered (to each rank, where there are several).
        shuffle, sampler, drop_last, and every other argument of DataLoader: as there. With `drop_last` an epoch
            delivers as many samples as a DataLoader of the starting size would.
        model: being trained. Needed, as `loss_func` is, unless `overhead=0`.
        optimizer: whose hyperparameters follow the batch.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`.
        batch_loss: called as `batch_loss(model, batch)`, for any other layout; instead of `loss_func`.
        autocast: makes the context that the forward pass runs under, as `lambda: torch.autocast("cuda")`.
        scheduler: a torch LR scheduler that the loop steps, per batch or per epoch.
        epochs: length of the run; read from the scheduler's `total_steps` or `T_max` where None.
        accumulation_steps: batches that the loop accumulates gradients of before it calls `optimizer.step()`.
        max_batch_size: of a batch as it is delivered, never exceeded, samples; where None a step has an eighth of the
            dataset, at most 32 times the base batch, of which 64 count, or 8 times where that is more.
        base_batch_size: the size the hyperparameters are stated for, samples of an optimizer step; where None
            `batch_size` times `accumulation_steps` times `world_size`.
        target: "goodput" (most progress per second), "noise_scale", or a function
            `(noise_scale, batch_size, progress) -> wanted batch size`.
        lr_scaling: "auto" (sqrt for Adam and its kin; linear up to the critical batch for SGD), "linear", "sqrt",
            "gain", "none", or a function `(k, noise_scale) -> factor`.
        transfer: which hyperparameters follow the batch, out of "lr", "betas", "eps" and "weight_decay"; where None all
            of them with `lr_scaling="auto"`, else "lr" only. What each becomes: docs/transfer.md.
        budget: of a run of `for epoch in loader.epochs(n)`. "progress": it ends when it has come as far as the plan
            would have with a small batch, in fewer steps and rather more samples; "epochs": after n epochs. A plain
            loop over the loader has the epochs that it has.
        max_extra: how many more samples than planned a budget of progress may take, as a share of them.
        exceed_memory: let the batch grow past what memory holds, and have `step` run it in pieces; on one device that
            saves no time.
        decide_every: share of the run between two decisions.
        confidence: of the reported interval of the noise scale.
        overhead: share of the run's time, as it would be at the first batch size, that measuring may cost; 0 measures
            nothing.
        step_time: (a, b), seconds of a step being a + b B. Given, no clock and no device is read, and a run can be
            repeated to the bit.
        source: of the measurements: "halves" of a batch; "per_example" norms, which vary less but exist for some layers
            only; "auto" takes those where they exist and pay.
        metric: "adam" reports, beside the plain noise scale that decides, the one in Adam's metric.
        by_group: report the noise scale of each of the optimizer's parameter groups too.
        rank, world_size: which process of how many this is; where None as torch's default process group says, if there
            is one. Each is delivered its slice of every batch, and all of them decide alike (docs/ranks.md).

    Raises:
        ValueError, TypeError: for arguments that cannot be; nothing has been changed then.
    """

    _run: LoaderSession

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
        max_batch_size: int | None = None,
        base_batch_size: int | None = None,
        target: str | Target = "goodput",
        lr_scaling: str | LRRule = "auto",
        transfer: Collection[str] | None = None,
        budget: str = "progress",
        max_extra: float = 1.0,
        exceed_memory: bool = False,
        decide_every: float = 0.05,
        confidence: float = 0.9,
        overhead: float = 0.05,
        step_time: tuple[float, float] | None = None,
        source: str = "auto",
        metric: str = "plain",
        by_group: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        **stock: Any,
    ) -> None:
        settings = Settings(
            max_batch_size=max_batch_size,
            base_batch_size=base_batch_size,
            target=target,
            lr_scaling=lr_scaling,
            transfer=transfer,
            budget=budget,
            max_extra=max_extra,
            exceed_memory=exceed_memory,
            decide_every=decide_every,
            confidence=confidence,
            overhead=overhead,
            step_time=step_time,
            source=source,
            metric=metric,
            by_group=by_group,
        )
        check(
            batch_size=batch_size, accumulation_steps=accumulation_steps, epochs=epochs,
            model=model, optimizer=optimizer, scheduler=scheduler, stock=stock,
        )  # fmt: skip
        stock.pop("batch_sampler", None)
        ranks, batch_size = Ranks.from_arguments(rank, world_size), int(batch_size)
        check_ranks(
            ranks, settings, dataset,
            batch_size=batch_size, accumulation_steps=accumulation_steps, drop_last=drop_last, stock=stock,
        )  # fmt: skip
        size = lambda: self._run.controller.batch_size  # noqa: E731
        feed = EpochSource(dataset, batch_size, shuffle, sampler, drop_last, generator, size, accumulation_steps, ranks)
        cut = feed.batch_sampler
        settings.check_start(batch_size, cut.epoch_samples // ranks.world_size)
        start_samples = batch_size * ranks.world_size
        epoch_steps = -(-cut.epoch_samples // start_samples)
        if epochs is None and scheduler is not None:
            epochs = run_epochs(scheduler, epoch_steps, accumulation_steps)
        views = views_of(optimizer, metric=metric, by_group=by_group)
        measurer: NoiseMeter | RankMeter | None = None
        loss = BatchLoss(loss_func, batch_loss, autocast) if overhead or loss_func or batch_loss else None
        if overhead and loss is not None:
            if ranks.connected:
                measurer = RankMeter(model, optimizer, loss, ranks, accumulation_steps)
            else:
                measurer = NoiseMeter(model, loss, choice=source, views=views, timed=step_time is None)
        place = SchedulerDriver(start_samples, cut.epoch_samples, epoch_steps, given=scheduler is not None)
        start = partial(
            Controller,
            settings,
            batch_size=batch_size,
            epoch_samples=cut.epoch_samples,
            adaptive=is_adaptive(optimizer),
            views=tuple(views),
            parts=accumulation_steps * ranks.world_size,
            ranks=ranks,
            placed=place.delivered if scheduler is not None else None,
        )
        self._run = LoaderSession(feed, start, epochs, model, optimizer, settings.following, measurer, place, loss)
        if feed.streams:  # (DataLoader takes no batch sampler then, but asks its own one in the same way)
            super().__init__(dataset, batch_size, shuffle, sampler, drop_last=drop_last, generator=generator, **stock)
        else:
            super().__init__(dataset, batch_sampler=cut, generator=generator, **stock)
            # It leaves these at their defaults beside a batch sampler, and forbids to assign them.
            self.__dict__.update(sampler=feed.order, drop_last=drop_last)
        self.__dict__["batch_sampler"] = cut
        # Last, so that an argument refused above has changed nothing of the user's.
        self._run.follow()
        if scheduler is not None:
            drive(scheduler, place.steps_due)

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

        With `budget="progress"` there may be more of them, and the last may be short, because the run ends when its
        progress is complete, at the latest after (1 + `max_extra`) times the planned samples. A resumed run goes on
        with the epoch that it had come to.

        Raises:
            ValueError: where `epochs=` or the scheduler has said another length.
        """
        return self._run.epochs(n)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """An epoch's batches, their size changing on the way."""
        return self._run.iterate(super().__iter__)

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
        return self._run.step(batch, scaler, before_step)

    def plain_batches(self) -> Iterator[Any]:
        """Batches of the size of now, that are neither counted nor measured: for looking at the data."""
        return iter(super().__iter__())

    def __len__(self) -> int:
        """Batches of an epoch at the size of now."""
        return len(self._run.feed.batch_sampler)

    @property
    def _controller(self) -> Controller:  # type: ignore[override]
        return self._run.controller

    @property
    def batch_size(self) -> int:
        """The size of the batches that are cut now, samples."""
        return self._controller.batch_size // self._controller.parts

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        return None  # DataLoader's __init__ stores None here: a batch sampler decides. Later it refuses to be set.

    @property
    def global_batch_size(self) -> int:
        """The size of the optimizer steps that are cut now, samples."""
        return self._controller.batch_size

    @property
    def lr_factor(self) -> float:
        """What the learning rate of the delivered batch is multiplied by inside the optimizer's step."""
        return self._controller.lr_factor

    def close(self) -> None:
        """Leave the optimizer as it was found: its hyperparameters no longer follow, and this loader is at its end."""
        self._run.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, after any batch: numbers, strings, tensors and containers of them.

        Saved together with the model, the optimizer, the scheduler and `torch.get_rng_state()`, a new process goes on
        as if nothing had happened (docs/checkpoints.md).
        """
        return self._run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration delivers what was left of the epoch.

        Raises:
            ValueError: saying what differs, where the loader is not one of the same run; nothing has changed then.
        """
        self._run.load_state_dict(state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy would grow its batch, and no optimizer would follow.
        raise TypeError(
            "an AdaptiveDataLoader cannot be copied or pickled, as it belongs to its model and optimizer: "
            "build another with theirs, and hand it state_dict() by load_state_dict()"
        )
