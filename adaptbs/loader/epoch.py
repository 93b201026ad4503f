"""The loader's work around the batches of one iteration."""

from __future__ import annotations

import logging
from typing import Any

from ..hyperparameters import StepHook
from ..run import LookAhead, TrainingRun
from ..sampling import EpochPasses, EpochSource
from .batch_of_step import BatchOfStep
from .misuse import MisuseWarnings
from .ranks import RankMeter, RankStep
from .row_check import RowCheck
from .scheduler import SchedulerDriver

log = logging.getLogger(__name__)


class LoaderEpoch:
    """The events of an iteration, for `BatchTracker.deliver`.

    Args:
        passes: the epoch's passes.
        source: the source that they belong to.
        run: the training run.
        driver: drives the scheduler.
        step_hook: sets the hyperparameters inside the optimizer's step.
        misuse: warns of what should follow the batch and does not.
        meter: measures the steps of several ranks; None on one process.
        rows: checks that rows follow samples.
        batch_of_step: notices a loop of which it is not known which batch its steps belong to.
        look_ahead: knows whether anything has been trained.
        owner: kept while the iteration lasts, also where the loop keeps nothing but the iteration.
    """

    def __init__(
        self,
        passes: EpochPasses,
        source: EpochSource,
        run: TrainingRun,
        driver: SchedulerDriver,
        step_hook: StepHook,
        misuse: MisuseWarnings,
        meter: RankMeter | None,
        rows: RowCheck,
        batch_of_step: BatchOfStep,
        look_ahead: LookAhead,
        owner: object,
    ) -> None:
        self._passes, self._source, self._run, self._driver = passes, source, run, driver
        self._hook, self._scaler, self._misuse, self._meter = step_hook, step_hook.scaler, misuse, meter
        self._rank_step: RankStep | None = None
        self._rows, self._batch_of_step, self._look_ahead = rows, batch_of_step, look_ahead
        self._owner = owner

    def begin_epoch(self) -> None:
        self._scaler.count_steps(wait=True)
        self._before = self._run.controller.progress_tracker.state_dict()
        self._misuse.begin_epoch()
        self._driver.begin_iteration()
        self._batch_of_step.begin_iteration()
        if self._meter is not None:
            self._rank_step = RankStep(self._meter, self._run)

    def before_batch(self, batch: Any) -> None:
        # This runs at every step, with the processor's caches full of the model's. The less it touches, the better.
        passes, run, which = self._passes, self._run, self._batch_of_step
        if self._source.delivering is not passes:
            self._source.delivers(passes)
        if self._rows.is_due:
            self._rows.look(batch, run.tracker.latest_fetched, self._source.ranks.world_size)
        if self._scaler.is_scaled:  # by a step that raised
            self._scaler.restore()
        if self._misuse.watches:
            self._misuse.look(not which.is_clear and self._step_is_due)
        if run.tracker.ends_here or passes.cut.is_beyond:
            self.before_end()
        if not which.is_clear:
            if which.stream.asks:
                which.stream.delivered()
            # A pass through the model would meet the loop's own, if that is in another thread.
            if not which.trains_here or self._look_ahead.is_idle:
                return
        if self._rank_step is not None:
            self._rank_step.begin(batch)
        run.before_batch(batch)

    @property
    def _step_is_due(self) -> bool:
        """True if the optimizer should have taken a step by now, and has not."""
        misuse = self._misuse
        grown = self._run.tracker.ever_changed and not misuse.ever_stepped
        return not misuse.saw_a_step and (grown or self._batch_of_step.has_trained)

    def before_end(self) -> None:
        """Let passes make the epochs, not progress, where the sampler yields more than the run was planned for."""
        progress, cut = self._run.controller.progress_tracker, self._passes.cut
        if not progress.by_shares:
            return
        if cut.is_beyond or (progress.epoch_complete and cut.look_beyond()):
            progress.end_by_epochs()

    def end_epoch(self) -> None:
        self._hook.leave()
        self._misuse.end_epoch()
        if self._rank_step is not None:
            self._rank_step.end()
        at_its_end, trained = self._passes.cut.is_at_its_end, self._look_ahead.settled
        is_a_look = self._batch_of_step.is_a_look(self._before["epoch"], at_its_end, trained)
        if is_a_look:
            self._take_back()
        self._driver.end_iteration()
        self._batch_of_step.end_iteration(at_its_end, trained, not is_a_look)
        self._source.ends(self._passes, self._run.goes_on)
        self._say_samples()
        self._run.after_epoch()

    def _take_back(self) -> None:
        """Let batches that were only looked at, as by `next(iter(loader))` or `list(loader)`, be no part of the run."""
        progress = self._run.controller.progress_tracker
        progress.load_state_dict(self._before)
        if self._run.tracker.under_way:  # which is about to count another epoch
            progress.set_epoch(progress.epoch - 1)
        self._driver.take_back()

    def _say_samples(self) -> None:
        """Log how many samples the epoch took, where it was given its share of the run's progress."""
        progress, samples = self._run.controller.progress_tracker, self._run.tracker.epoch_position
        if progress.epoch_complete and self._source.ranks.rank == 0:
            passes = samples / progress.epoch_samples
            log.info("epoch %d took %d samples: %.2f passes over the data", progress.epoch, samples, passes)
