"""The loader's work around the batches of one iteration."""

from __future__ import annotations

import logging
from typing import Any

from ..hyperparameters import StepHook
from ..run import LookAhead
from ..sampling import BatchInfo, EpochPasses
from .ranks import RankStep
from .session_parts import SessionParts

log = logging.getLogger(__name__)


class LoaderEpoch:
    """The events of an iteration, for `BatchTracker.deliver`.

    Args:
        parts: the parts of the loader's session.
        passes: the epoch's passes.
        step_hook: sets the hyperparameters inside the optimizer's step.
        look_ahead: knows whether anything has been trained.
        owner: kept while the iteration lasts, also where the loop keeps nothing but the iteration.
    """

    def __init__(
        self, parts: SessionParts, passes: EpochPasses, step_hook: StepHook, look_ahead: LookAhead, *, owner: object
    ) -> None:
        self._passes, self._source, self._run, self._driver = passes, parts.source, parts.run, parts.driver
        self._hook, self._scaler, self._misuse = step_hook, step_hook.scaler, parts.misuse
        self._meter = parts.meter
        self._rank_step: RankStep | None = None
        self._rows, self._batch_of_step, self._look_ahead = parts.rows, parts.batch_of_step, look_ahead
        self._looked_at: list[BatchInfo] = []  # batches of the rest of a pass, until one is trained on
        self._owner = owner

    def begin_epoch(self) -> None:
        self._scaler.count_steps(wait=True)
        self._before, self._tracker = self._run.controller.progress_tracker.state_dict(), self._run.tracker
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
        if not self._hook.is_followed and self._look_ahead.settled:  # but another loader, that takes turns with this
            self._hook.take()
        if self._scaler.is_scaled:  # by a step that raised
            self._scaler.restore()
        if run.tracker.ever_changed and which.passed_over.is_due:
            which.look_at_another_size()
        if self._misuse.watches:
            self._misuse.look(not which.is_clear and self._step_is_due)
        if run.tracker.ends_here or passes.cut.is_beyond:
            self.before_end()
        if not which.is_clear:
            if passes.is_rest and not self._look_ahead.settled:
                self._looked_at.append(run.tracker.latest_fetched)
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

    def end_epoch(self) -> bool:
        self._hook.leave()
        self._misuse.end_epoch()
        if self._rank_step is not None:
            self._rank_step.end()
        passes, progress = self._passes, self._run.controller.progress_tracker
        at_its_end, trained = passes.cut.is_at_its_end, self._look_ahead.settled
        is_whole = at_its_end and (progress.epoch_complete or not progress.by_shares)
        is_current = self._run.tracker is self._tracker  # else the run was begun anew meanwhile, as by a loaded state
        looks = self._batch_of_step.looks
        may_look = is_current and passes.begun > 0 and not self._may_train_yet
        is_a_look = may_look and looks.is_a_look(self._before["epoch"], is_whole, trained)
        if is_a_look:
            progress.load_state_dict(self._before)
            self._driver.take_back()
        self._driver.end_iteration()
        self._batch_of_step.end_iteration(at_its_end, trained, not is_a_look)
        if is_a_look:
            self._source.take_back(passes, self._looked_at)
        else:
            self._source.ends(passes, is_current and self._run.goes_on)
            if is_current:
                self._say_samples()
        self._run.after_epoch()
        return is_a_look

    @property
    def _may_train_yet(self) -> bool:
        """True if the iteration has ended with few batches, all of which may have been fetched ahead of any work."""
        passes = self._passes
        return self._look_ahead.asks and (passes.began_with_a_rest or passes.begun == 1)

    def _say_samples(self) -> None:
        """Log how many samples the epoch took, where it was given its share of the run's progress."""
        progress, samples = self._run.controller.progress_tracker, self._run.tracker.epoch_position
        if progress.epoch_complete and self._source.ranks.rank == 0:
            passes = samples / progress.epoch_samples
            log.info("epoch %d took %d samples: %.2f passes over the data", progress.epoch, samples, passes)
