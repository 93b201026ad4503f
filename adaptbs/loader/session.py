"""A run through an AdaptiveDataLoader: its epochs, its iterations, and its state."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..checks import check_size
from ..hyperparameters import StepHook
from ..model import BatchLoss
from ..run import DetectLookAhead, TrainingRun, check_version
from ..sampling import EpochSource
from ..types import Scale
from .epoch import LoaderEpoch
from .misuse import MisuseWarnings
from .ranks import RankMeter
from .scheduler import SchedulerDriver
from .step import LoaderStep

log = logging.getLogger(__name__)


class LoaderSession:
    """See AdaptiveDataLoader, whose methods these are.

    Args:
        source: the batches of every epoch.
        run: the training run that they belong to.
        epochs: length of the run; None where it is not known.
        optimizer: the optimizer that trains.
        following: the hyperparameters of it that follow the batch.
        meter: measures the steps of several ranks; None on one process.
        driver: drives the scheduler.
        loss: the loss of a batch; None where it was not given.
    """

    def __init__(
        self,
        source: EpochSource,
        run: TrainingRun,
        epochs: int | None,
        optimizer: Optimizer,
        following: Collection[str],
        meter: RankMeter | None,
        driver: SchedulerDriver,
        loss: BatchLoss | None,
    ) -> None:
        self.source, self.run, self.driver, self.meter = source, run, driver, meter
        self._epochs, self._optimizer, self._following, self._loss = epochs, optimizer, following, loss
        run.start(epochs)
        self._begun = False  # whether `epochs` has been called, or a state loaded
        self._look_ahead: DetectLookAhead | None = None  # of the latest iteration
        self._steps: LoaderStep | None = None
        self._warned = self._warned_of_plain = self._closed = False
        self.misuse = MisuseWarnings(
            optimizer, scheduler_given=driver.given, follows=bool(following),
            batches_per_step=run.controller.batches_per_step,
        )  # fmt: skip

    def follow(self) -> None:
        """From now on let the hyperparameters follow the batch, as long as there is anybody who sets it."""
        session = weakref.ref(self)  # the optimizer's hooks should not be what keeps a loader alive

        def scale() -> Scale:
            live = session()
            if live is None:
                return Scale()
            if not live.misuse.saw_a_step:
                live.misuse.stepped()
            if live._look_ahead is not None and live._look_ahead.ahead is None:
                live._look_ahead.works()
            if live.run.watches_step:
                live.run.before_step()
            return live.run.controller.scales[live.run.tracker.current.cut_size]

        self.step_hook = StepHook(self._optimizer, scale, self._following)
        self.run.follow(self.step_hook.scaler)
        weakref.finalize(self, self.step_hook.remove)

    def close(self) -> None:
        self._closed = True
        self.step_hook.remove()

    def epochs(self, n: int) -> Iterator[int]:
        check_size("n", n)
        if self._epochs is None and not self.run.has_begun:
            self._epochs = n
            self.run.start(n)
        if self._epochs != n:
            said = "a run of unknown length has begun" if self._epochs is None else f"the run has {self._epochs} epochs"
            raise ValueError(f"epochs({n}): {said}: give epochs={n} to the loader, or a scheduler of that length")
        progress = self.run.controller.progress_tracker
        if not self._begun:
            progress.set_epoch(0)  # a look at a batch before was no epoch of the run
        self._begun = True
        self._end_by_progress()
        if self.run.is_over or progress.epoch >= progress.most_epochs:
            log.warning("epochs(%d): the run is over, so there are none left: to train on, build another loader", n)
        return self._count_epochs()

    def _end_by_progress(self) -> None:
        self.run.controller.end_by_progress()
        if self.run.controller.progress_tracker.max_extra is not None:
            self.driver.go_by_progress()

    def _count_epochs(self) -> Iterator[int]:
        # A run resumed at its very end has its last batch to be done with.
        while (progress := self.run.controller.progress_tracker).epoch < progress.most_epochs and not self.run.is_over:
            epoch = progress.epoch
            yield epoch
            # One epoch, whatever the loop's body did with the loader.
            self.run.controller.progress_tracker.set_epoch(epoch + 1)

    def iterate(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """An epoch's batches; `fetch` begins the DataLoader's own iteration."""
        if self._closed:
            raise RuntimeError("close() was called, so no hyperparameter would follow the batch: build another loader")
        if self.run.is_over or not torch.is_grad_enabled():  # for `update_bn`, say, or an accuracy
            if not self._warned_of_plain:
                self._warned_of_plain = True
                log.warning(
                    "%s, so batches are delivered that are neither counted nor measured: loader.plain_batches() says "
                    "that this is meant. To train, build another loader, and begin its iteration with gradients on.",
                    "the run is over" if self.run.is_over else "gradients are switched off",
                )
            return fetch()
        self._follow_the_model()
        if self._epochs is None and not self._warned:
            self._warned = True
            log.warning(
                "the length of the run is not known: decisions are paced by the epoch. "
                "Give epochs=, a scheduler with total_steps or T_max, or loop over loader.epochs(n)."
            )
        cut, fetched = self.source.iterate(fetch)
        self._look_ahead = DetectLookAhead(p for group in self._optimizer.param_groups for p in group["params"])
        events = LoaderEpoch(cut, self.source, self.run, self.driver, self.step_hook, self.misuse, self.meter, self)
        return self.run.deliver(fetched, cut.queue, self._look_ahead, events, cut.is_new)

    def _follow_the_model(self) -> None:
        """Begin anew where the model has been moved before the run has begun: times and memory are of its device."""
        if not self.run.has_begun and self.run.controller.device != self.run.model_device:
            self.run.start(self._epochs)
            if self._begun:
                self._end_by_progress()

    def step(self, batch: Any, scaler: Any, before_step: Callable[[], None] | None) -> Tensor:
        if self._loss is None:
            raise ValueError("step() has to know the loss: give loss_func= or batch_loss= to the loader")
        if self.source.ranks.connected:
            raise NotImplementedError(
                "step() cannot run a batch in pieces where several ranks wait for each other's gradients: "
                "call loss.backward() and optimizer.step()"
            )
        if self._look_ahead is not None:
            self._look_ahead.works()
        if self._steps is None:
            self._steps = LoaderStep(self.run, self._optimizer, self._loss)
        return self._steps(batch, scaler, before_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.run.state_dict(),
            "epochs": self._epochs,
            "world_size": self.source.ranks.world_size,
            "source": self.source.state_dict(self.run.tracker.under_way),
            "schedule": self.driver.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_version(state)
        if state["world_size"] != self.source.ranks.world_size:
            raise ValueError(
                f"the saved run has world_size={state['world_size']}, this one {self.source.ranks.world_size}: "
                "go on with as many processes, whose batches make the same optimizer steps"
            )
        self.run.check_state(state)
        if self._epochs is None:
            self._epochs = state["epochs"]
        self._begun = True
        self.run.start(self._epochs)
        self.run.load_state_dict(state)
        self.source.load_state_dict(state["source"])
        self.driver.load_state_dict(state["schedule"])
