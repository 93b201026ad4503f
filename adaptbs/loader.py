"""AdaptiveDataLoader: a DataLoader whose batch grows while the loop around it stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from . import schedule
from .controller import Controller
from .gradients.batch_loss import BatchLoss
from .gradients.measurer import Measurer
from .gradients.views import views_of
from .lr_scaling import is_adaptive
from .report import RunReport
from .sampler import AdaptiveBatchSampler, indices
from .scaled_step import ScaledStep
from .settings import Settings, check_size
from .types import LRRule, Target

log = logging.getLogger(__name__)


class AdaptiveDataLoader(RunReport, DataLoader[Any]):
    """In place of `torch.utils.data.DataLoader`: measures the noise scale and grows the batch toward it.

    Iterate over it as over a DataLoader and train as ever: `optimizer.step()` finds its hyperparameters set for the
    batch, and `scheduler.step()`, called where it always was, ends where it would have ended.

    Measuring takes passes of its own through `loss_func` on some of the batches, before they are delivered; `.grad`,
    buffers and random states do not notice.

    Args:
        dataset: map-style, with a length.
        batch_size: to start with, samples.
        shuffle, sampler, drop_last, and every other argument of DataLoader: as there. With `drop_last` an epoch
            delivers as many samples as a DataLoader of the starting size would.
        model: being trained. Needed, as `loss_func` is, unless `overhead=0`.
        optimizer: whose hyperparameters follow the batch.
        loss_func: called as `loss_func(model(*inputs), target)` on a batch `(*inputs, target)`.
        batch_loss: called as `batch_loss(model, batch)`, for any other layout; instead of `loss_func`.
        autocast: makes the context that the forward pass runs under, as `lambda: torch.autocast("cuda")`.
        scheduler: a torch LR scheduler that the loop steps, per batch or per epoch.
        epochs: length of the run; read from the scheduler's `total_steps` or `T_max` where None.
        max_batch_size: never exceeded, samples; where None an eighth of the dataset, at most 32 times the base
            batch, of which 64 count, or 8 times where that is more.
        base_batch_size: the size the hyperparameters are stated for, samples; `batch_size` where None.
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
        anneal_at_cap: whether the learning rate falls, as if the batch had grown, where `max_batch_size` or memory hold
            it below what the target wants.
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

    Raises:
        ValueError, TypeError: for arguments that cannot be; nothing has been changed then.
    """

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
        max_batch_size: int | None = None,
        base_batch_size: int | None = None,
        target: str | Target = "goodput",
        lr_scaling: str | LRRule = "auto",
        transfer: Collection[str] | None = None,
        budget: str = "progress",
        max_extra: float = 1.0,
        anneal_at_cap: bool = False,
        decide_every: float = 0.05,
        confidence: float = 0.9,
        overhead: float = 0.05,
        step_time: tuple[float, float] | None = None,
        source: str = "auto",
        metric: str = "plain",
        by_group: bool = False,
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
            anneal_at_cap=anneal_at_cap,
            decide_every=decide_every,
            confidence=confidence,
            overhead=overhead,
            step_time=step_time,
            source=source,
            metric=metric,
            by_group=by_group,
        )
        if stock.pop("batch_sampler", None) is not None:
            raise ValueError("batch_sampler= fixes the batches, so they cannot grow: give sampler= or shuffle=")
        check_size("batch_size", batch_size)
        batch_size = int(batch_size)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer={optimizer!r}: it must be a torch.optim.Optimizer")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler={scheduler!r}: it must be a torch.optim.lr_scheduler.LRScheduler")
        if epochs is not None:
            check_size("epochs", epochs)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("model has no trainable parameter: there is no gradient to measure the noise of")
        order = indices(dataset, shuffle, sampler, generator)
        settings.check_start(batch_size, len(order))
        cut = AdaptiveBatchSampler(order, self._next_size, batch_size, drop_last)
        epoch_steps = -(-cut.epoch_samples // batch_size)
        if epochs is None and scheduler is not None:
            epochs = schedule.run_epochs(scheduler, epoch_steps)
        views = views_of(optimizer, metric=metric, by_group=by_group)
        self._measurer: Measurer | None = None
        if overhead:
            loss = BatchLoss(loss_func, batch_loss, autocast)
            self._measurer = Measurer(model, loss, choice=source, views=views, timed=step_time is None)
        self._start_run = partial(
            Controller,
            settings,
            batch_size=batch_size,
            epoch_samples=cut.epoch_samples,
            adaptive=is_adaptive(optimizer),
            device=next(model.parameters()).device,
            views=tuple(views),
        )
        self._epochs = epochs
        self._controller: Controller = self._start_run(epochs=epochs)
        super().__init__(dataset, batch_sampler=cut, generator=generator, **stock)
        # DataLoader leaves these at their defaults beside a batch sampler, and forbids to assign them.
        self.__dict__.update(sampler=cut.sampler, drop_last=drop_last)
        self._cut, self._warned = cut, False
        self._scheduled = scheduler is not None
        self._place = schedule.SchedulePlace(batch_size, cut.epoch_samples, epoch_steps)
        # Last, so that an argument refused above has changed nothing of the user's.
        self._scaled_step = ScaledStep(
            optimizer,
            lambda: self._controller.lr_factor,
            lambda: self._controller.k,
            settings.following,
            lambda: self._controller.anneal,
        )
        if scheduler is not None:
            schedule.drive(scheduler, self._place.steps_due)

    def epochs(self, n: int) -> Iterator[int]:
        """The epochs of a run planned to take `n`: `for epoch in loader.epochs(5): for batch in loader: ...`.

        With `budget="progress"` there may be more of them, and the last may be short, because the run ends when its
        progress is complete, at the latest after (1 + `max_extra`) times the planned samples. A resumed run goes on
        with the epoch that it had come to.

        Raises:
            ValueError: where `epochs=` or the scheduler has said another length.
        """
        check_size("n", n)
        if self._epochs is None and not self._controller.run.samples:
            self._epochs, self._controller = n, self._start_run(epochs=n)
        if self._epochs != n:
            said = "a run of unknown length has begun" if self._epochs is None else f"the run has {self._epochs} epochs"
            raise ValueError(f"epochs({n}): {said}: give epochs={n} to the loader, or a scheduler of that length")
        self._controller.end_by_progress()
        self._place.by_progress = self._controller.run.max_extra is not None
        return self._run_epochs()

    def _run_epochs(self) -> Iterator[int]:
        run = self._controller.run
        while run.epoch < run.most_epochs and not run.complete:
            epoch = run.epoch
            yield epoch
            run.epoch = epoch + 1  # once, whatever the loop's body did with the loader

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """An epoch's batches, their size changing on the way."""
        if self._epochs is None and not self._warned:
            self._warned = True
            log.warning(
                "the length of the run is not known: decisions are paced by the epoch. "
                "Give epochs=, a scheduler with total_steps or T_max, or loop over loader.epochs(n)."
            )
        fetched = super().__iter__()
        return self._measured(self._controller.deliver(fetched, self._cut.issued))

    def plain_batches(self) -> Iterator[Any]:
        """Batches of the size of now, that are neither counted nor measured: for looking at the data."""
        return iter(super().__iter__())

    def _measured(self, delivered: Iterable[Any]) -> Iterator[Any]:
        self._scaled_step.hyperparameters.count(wait=True)
        with self._place.iteration():
            for batch in delivered:
                self._scaled_step.restore()
                if self._scheduled:
                    self._place.delivered(*self._controller.schedule_span)
                if self._measurer is not None:
                    self._measure(batch, self._measurer)
                yield batch

    def __len__(self) -> int:
        """Batches of an epoch at the size of now."""
        return len(self._cut)

    @property
    def batch_size(self) -> int:
        """The size of the batches that are cut now, samples."""
        return self._controller.batch_size

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        # DataLoader's __init__ stores None here, meaning that a batch sampler decides; ours does, and is asked for the
        # size. Once initialised a DataLoader refuses to be set.
        return None

    @property
    def lr_factor(self) -> float:
        """What the learning rate of the delivered batch is multiplied by inside the optimizer's step."""
        return self._controller.lr_factor

    def close(self) -> None:
        """Leave the optimizer as it was found: its hyperparameters no longer follow."""
        self._scaled_step.remove()

    def state_dict(self) -> dict[str, Any]:
        """What decisions depend on, to be saved between epochs. Raises RuntimeError in the middle of one."""
        if self._controller.run.mid_epoch:
            raise RuntimeError("an epoch is under way: save between epochs")
        return {
            "controller": self._controller.state_dict(),
            "schedule": self._place.state_dict(),
            "hyperparameters": self._scaled_step.hyperparameters.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a loader over as much data; a ValueError says what differs."""
        self._controller.load_state_dict(state["controller"])
        self._place.load_state_dict(state["schedule"])
        self._scaled_step.hyperparameters.load_state_dict(state.get("hyperparameters", []))

    def _next_size(self) -> int:
        return self._controller.batch_size

    def _measure(self, batch: Any, measurer: Measurer) -> None:
        if self._controller.measure_next():
            with self._controller.measuring():
                self._controller.measured(measurer.measure(batch, self._controller.delivered.length))
