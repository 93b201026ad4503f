"""A run through an AdaptiveDataLoader: its epochs, its batches with what is done around each, and its state."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import check_size
from ..gradients import NoiseMeter, waits_for_nobody
from ..hyperparameters import StepHook
from ..memory import MemoryTrial, memory_of
from ..model import BatchLoss, add_note
from ..run import Controller, DetectLookAhead, measure
from ..sampling import EpochCut, EpochSource
from ..types import Scale
from .misuse import MisuseWarnings
from .ranks import RankMeter
from .scheduler import SchedulerDriver
from .step import LoaderStep

log = logging.getLogger(__name__)

VERSION = 3  # of what state_dict() holds
WHILE_MEASURING = (
    "This happened while the noise scale of a batch was measured, before it was delivered. If the loss needs the batch "
    "in another form, give batch_loss=(model, batch) -> loss; overhead=0 measures nothing."
)


class LoaderSession:
    """See AdaptiveDataLoader, whose methods these are.

    Args:
        feed: of batches.
        start: makes the controller of a run of `epochs=` on a `device=`.
        model: being trained.
        epochs: length of the run; None where that is not known.
        optimizer: that trains.
        following: which of its hyperparameters follow the batch.
        measurer: of batches, or of steps on several ranks; None where nothing is measured.
        place: of the schedule.
        loss: of a batch; None where it was not given.
    """

    def __init__(
        self,
        feed: EpochSource,
        start: Callable[..., Controller],
        epochs: int | None,
        model: nn.Module,
        optimizer: Optimizer,
        following: Collection[str],
        measurer: NoiseMeter | RankMeter | None,
        place: SchedulerDriver,
        loss: BatchLoss | None,
    ) -> None:
        self.feed, self._start, self._epochs, self._measurer, self._place = feed, start, epochs, measurer, place
        self._model, self._optimizer, self._following, self._loss = model, optimizer, following, loss
        self.controller = self._new(epochs)
        self._begun = False  # whether `epochs` has been called, or a state loaded
        self._loop: DetectLookAhead | None = None  # the latest
        self._steps: LoaderStep | None = None
        self._warned = self._warned_of_plain = self._closed = False
        self._advice = MisuseWarnings(
            optimizer, scheduler_given=place.given, follows=bool(following), parts=self.controller.parts
        )

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _new(self, epochs: int | None) -> Controller:
        """The controller of a run that begins."""
        memory = memory_of({p.device for p in self._model.parameters()}, self.feed.ranks.world_size)
        controller = self._start(epochs=epochs, device=self._device, memory=memory)
        self._trial: MemoryTrial | None = None
        if self._loss is not None:
            measures = isinstance(self._measurer, NoiseMeter)
            apart = waits_for_nobody(self._model) if self.feed.ranks.connected else self._model
            self._trial = MemoryTrial(apart or self._model, self._loss, memory, measures=measures)
            if apart is not None:
                controller.memory.attempt = self._trial
        return controller

    def follow(self) -> None:
        """From now on let the hyperparameters follow the batch, as long as there is anybody who sets it."""
        run = weakref.ref(self)  # (the optimizer's hooks should not be what keeps a loader alive)

        def scale() -> Scale:
            live = run()
            if live is None:
                return Scale()
            live._advice.stepped = True
            if live._loop is not None and live._loop.ahead is None:
                live._loop.works()
            return live.controller.scale

        self.scaled_step = StepHook(self._optimizer, scale, self._following)
        weakref.finalize(self, self.scaled_step.remove)

    def close(self) -> None:
        self._closed = True
        self.scaled_step.remove()

    def _on_device(self) -> None:
        """Begin anew where the model has been moved before the run has begun: times and memory are of its device."""
        if not self.controller.run.samples and self.controller.device != self._device:
            self.controller = self._new(self._epochs)
            if self._begun:
                self.controller.end_by_progress()

    def epochs(self, n: int) -> Iterator[int]:
        check_size("n", n)
        if self._epochs is None and not self.controller.run.samples:
            self._epochs, self.controller = n, self._new(n)
        if self._epochs != n:
            said = "a run of unknown length has begun" if self._epochs is None else f"the run has {self._epochs} epochs"
            raise ValueError(f"epochs({n}): {said}: give epochs={n} to the loader, or a scheduler of that length")
        if not self._begun:
            self.controller.run.epoch = 0  # (whoever looked at a batch before had no epoch of the run)
        self._begun = True
        self.controller.end_by_progress()
        self._place.by_progress = self.controller.run.max_extra is not None
        run = self.controller.run
        if self._is_over or run.epoch >= run.most_epochs:
            log.warning("epochs(%d): the run is over, so there are none left: to train on, build another loader", n)
        return self._count_epochs()

    @property
    def _is_over(self) -> bool:
        """Whether a run that ends by its progress has come to its end, its last batch included."""
        run = self.controller.run
        return run.complete and not run.under_way

    def _count_epochs(self) -> Iterator[int]:
        # (A run resumed at its very end has its last batch to be done with.)
        while (run := self.controller.run).epoch < run.most_epochs and not self._is_over:
            epoch = run.epoch
            yield epoch
            self.controller.run.epoch = epoch + 1  # once, whatever the loop's body did with the loader

    def iterate(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """An epoch's batches; `fetch` begins the DataLoader's own iteration."""
        if self._closed:
            raise RuntimeError("close() was called, so no hyperparameter would follow the batch: build another loader")
        if self._is_over or not torch.is_grad_enabled():  # (for `update_bn`, say, or an accuracy)
            if not self._warned_of_plain:
                self._warned_of_plain = True
                log.warning(
                    "%s, so batches are delivered that are neither counted nor measured: loader.plain_batches() says "
                    "that this is meant. To train, build another loader, and begin its iteration with gradients on.",
                    "the run is over" if self._is_over else "gradients are switched off",
                )
            return fetch()
        self._on_device()
        if self._epochs is None and not self._warned:
            self._warned = True
            log.warning(
                "the length of the run is not known: decisions are paced by the epoch. "
                "Give epochs=, a scheduler with total_steps or T_max, or loop over loader.epochs(n)."
            )
        cut, fetched, issued = self.feed.iterate(fetch)
        self._loop = DetectLookAhead(p for group in self._optimizer.param_groups for p in group["params"])
        delivered = self.controller.deliver(fetched, issued, self._loop)
        if isinstance(self._measurer, RankMeter):
            delivered = self._measurer.around(delivered, self.controller)
        return self._around(cut, delivered)

    def _around(self, cut: EpochCut, delivered: Iterable[Any]) -> Iterator[Any]:
        self.scaled_step.hyperparameters.count(wait=True)
        measurer = self._measurer if isinstance(self._measurer, NoiseMeter) else None
        self._advice.begins()
        try:
            with self._place.iteration():
                for batch in delivered:
                    if self.feed.delivering is not cut:
                        self.feed.delivers(cut)
                    if self.scaled_step.is_scaled:  # (by a step that raised)
                        self.scaled_step.restore()
                    if self.controller.delivery.ever_changed:
                        self._advice.looks()
                    if self._trial is not None:
                        self._trial.batch = batch
                    if measurer is not None and self.controller.measure_next():
                        self._measure(batch, measurer)
                    yield batch
        finally:
            self.feed.ends(cut)
            if self._trial is not None:
                self._trial.batch = None

    def _measure(self, batch: Any, measurer: NoiseMeter) -> None:
        try:
            measure(self.controller, measurer, batch)
        except Exception as error:
            add_note(error, WHILE_MEASURING)
            raise

    def step(self, batch: Any, scaler: Any, before_step: Callable[[], None] | None) -> Tensor:
        if self._loss is None:
            raise ValueError("step() has to know the loss: give loss_func= or batch_loss= to the loader")
        if self.feed.ranks.connected:
            raise NotImplementedError(
                "step() cannot run a batch in pieces where several ranks wait for each other's gradients: "
                "call loss.backward() and optimizer.step()"
            )
        if self._loop is not None:
            self._loop.works()
        if self._steps is None:
            self._steps = LoaderStep(self._model, self._optimizer, self._loss)
        return self._steps(self.controller, batch, scaler, before_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "epochs": self._epochs,
            "world_size": self.feed.ranks.world_size,
            "feed": self.feed.state_dict(self.controller.run.under_way),
            "controller": self.controller.state_dict(),
            "measurer": self._measurer.state_dict() if isinstance(self._measurer, NoiseMeter) else None,
            "schedule": self._place.state_dict(),
            "hyperparameters": self.scaled_step.hyperparameters.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("version") != VERSION:
            raise ValueError(
                f"the state is of version {state.get('version')}, this adaptbs reads {VERSION}: "
                "finish the run with the adaptbs that began it, or start anew"
            )
        if state.get("world_size", 1) != self.feed.ranks.world_size:
            raise ValueError(
                f"the saved run has world_size={state['world_size']}, this one {self.feed.ranks.world_size}: "
                "go on with as many processes, whose batches make the same optimizer steps"
            )
        epochs = state["epochs"] if self._epochs is None else self._epochs
        controller = self._new(epochs)
        controller.load_state_dict(state["controller"])
        self._epochs, self.controller, self._begun = epochs, controller, True
        self.feed.load_state_dict(state["feed"])
        if isinstance(self._measurer, NoiseMeter) and state["measurer"] is not None:
            self._measurer.load_state_dict(state["measurer"])
        self._place.load_state_dict(state["schedule"])
        self.scaled_step.hyperparameters.load_state_dict(state["hyperparameters"])
