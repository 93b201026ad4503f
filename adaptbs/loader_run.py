"""A run through an AdaptiveDataLoader: its epochs, its batches with what is done around each, and its state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from torch.optim import Optimizer

from .controller import Controller
from .delivery import WatchedLoop
from .feed import Feed
from .gradients.measurer import Measurer
from .rank_measuring import RankMeasuring
from .sampler import Cut
from .scaled_step import ScaledStep
from .schedule import SchedulePlace
from .settings import check_size

log = logging.getLogger(__name__)

VERSION = 1  # of what state_dict() holds


class LoaderRun:
    """See AdaptiveDataLoader, whose methods these are.

    Args:
        feed: of batches.
        start: makes the controller of a run of `epochs=`.
        epochs: length of the run; None where that is not known.
        optimizer: that trains.
        following: which of its hyperparameters follow the batch.
        measurer: of batches, or of steps on several ranks; None where nothing is measured.
        place: of the schedule.
    """

    def __init__(
        self,
        feed: Feed,
        start: Callable[..., Controller],
        epochs: int | None,
        optimizer: Optimizer,
        following: Collection[str],
        measurer: Measurer | RankMeasuring | None,
        place: SchedulePlace,
    ) -> None:
        self.feed, self._start, self._epochs, self._measurer, self._place = feed, start, epochs, measurer, place
        self._optimizer, self._following = optimizer, following
        self.controller = start(epochs=epochs)
        self._begun = False  # whether `epochs` has been called, or a state loaded
        self._warned = False

    def follow(self) -> None:
        """From now on let the hyperparameters follow the batch."""
        self.scaled_step = ScaledStep(
            self._optimizer,
            lambda: self.controller.lr_factor,
            lambda: self.controller.k,
            self._following,
            lambda: self.controller.anneal,
        )

    def epochs(self, n: int) -> Iterator[int]:
        check_size("n", n)
        if self._epochs is None and not self.controller.run.samples:
            self._epochs, self.controller = n, self._start(epochs=n)
        if self._epochs != n:
            said = "a run of unknown length has begun" if self._epochs is None else f"the run has {self._epochs} epochs"
            raise ValueError(f"epochs({n}): {said}: give epochs={n} to the loader, or a scheduler of that length")
        if not self._begun:
            self.controller.run.epoch = 0  # (whoever looked at a batch before had no epoch of the run)
        self._begun = True
        self.controller.end_by_progress()
        self._place.by_progress = self.controller.run.max_extra is not None
        return self._count_epochs()

    def _count_epochs(self) -> Iterator[int]:
        run = self.controller.run
        while run.epoch < run.most_epochs and not run.complete:
            epoch = run.epoch
            yield epoch
            run.epoch = epoch + 1  # once, whatever the loop's body did with the loader

    def iterate(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """An epoch's batches; `fetch` begins the DataLoader's own iteration."""
        if self._epochs is None and not self._warned:
            self._warned = True
            log.warning(
                "the length of the run is not known: decisions are paced by the epoch. "
                "Give epochs=, a scheduler with total_steps or T_max, or loop over loader.epochs(n)."
            )
        cut, fetched, issued = self.feed.iterate(fetch)
        loop = WatchedLoop(p for group in self._optimizer.param_groups for p in group["params"])
        delivered = self.controller.deliver(fetched, issued, loop)
        if isinstance(self._measurer, RankMeasuring):
            delivered = self._measurer.around(delivered, self.controller)
        return self._around(cut, delivered)

    def _around(self, cut: Cut, delivered: Iterable[Any]) -> Iterator[Any]:
        self.scaled_step.hyperparameters.count(wait=True)
        try:
            with self._place.iteration():
                for batch in delivered:
                    self.feed.delivers(cut)
                    self.scaled_step.restore()
                    if isinstance(self._measurer, Measurer) and self.controller.measure_next():
                        with self.controller.measuring():
                            samples = self.controller.delivery.fetched.length
                            self.controller.measured(self._measurer.measure(batch, samples))
                    yield batch
        finally:
            self.feed.ends(cut)

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "epochs": self._epochs,
            "world_size": self.feed.ranks.world_size,
            "feed": self.feed.state_dict(self.controller.run.under_way),
            "controller": self.controller.state_dict(),
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
        controller = self._start(epochs=epochs)
        controller.load_state_dict(state["controller"])
        self._epochs, self.controller, self._begun = epochs, controller, True
        self.feed.load_state_dict(state["feed"])
        self._place.load_state_dict(state["schedule"])
        self.scaled_step.hyperparameters.load_state_dict(state["hyperparameters"])
