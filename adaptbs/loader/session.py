"""A run through an AdaptiveDataLoader: its epochs, its iterations, and its state."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, is_grad_enabled

from ..checks import check_size
from ..gradients import is_sharded
from ..hyperparameters import StepHook
from ..model import CachedFact, a_few_trained
from ..run import DetectLookAhead, LookAhead, StillAhead, check_version
from ..types import Scale
from .drawn import frame
from .driven_scheduler import DrivenSchedule
from .epoch import LoaderEpoch
from .length_warnings import BY_COUNT, COUNTED, LENGTH, OTHER_LENGTH
from .misuse import NO_GRADIENTS, OVER
from .other_ranks import for_ranks
from .session_parts import SessionParts
from .step import LoaderStep
from .while_alive import while_alive

log = logging.getLogger(__name__)


class LoaderSession:
    """See AdaptiveDataLoader, whose methods these are.

    Args:
        parts: what it puts together.
    """

    def __init__(self, parts: SessionParts) -> None:
        self._parts = parts
        self.source, self.run, self.driver, self.meter = parts.source, parts.run, parts.driver, parts.meter
        self.misuse, self.batch_of_step, self._length = parts.misuse, parts.batch_of_step, parts.length
        self.measures_at_step = parts.ready is None
        self._is_sharded = CachedFact(parts.run.model, partial(is_sharded, parts.run.model))
        self._begun = False  # whether `epochs` has been called, or a state loaded
        self._look_ahead: LookAhead | None = None  # of the latest iteration
        self._steps: LoaderStep | None = None
        self._warned = self._warned_of_plain = self._closed = False
        self._start()

    def _start(self) -> None:
        """Begin the run, with what is known of its length."""
        run, length = self.run, self._length
        run.start(length.epochs)
        length.warn_by(run.controller.holds.warn if run.controller.rules.may_change else log.debug)
        if length.steps_of_epoch is not None:
            self.driver.know(length.steps_of_epoch, self.source.batch_sampler.batches_per_step)
        if self.meter is not None:
            run.count_memory_of(self.meter.gradients)
        if length.holds:
            run.controller.holds.add(LENGTH)

    def follow(self) -> None:
        """From now on let hyperparameters and schedule follow the batch, as long as there is anybody who sets it."""
        parts, holds = self._parts, self.run.controller.holds
        # The optimizer's hooks should not be what keeps a loader alive.
        self.step_hook = StepHook(parts.optimizer, partial(_scale_of_step, weakref.ref(self)), parts.following)
        self.run.follow(self.step_hook.scaler)
        self.driver.on_call(while_alive(self._settle_length))
        self.driver.on_count(while_alive(self._is_counted_by_the_loop))
        self._leaves = [self.step_hook.remove, self.batch_of_step.close, parts.rows.close]
        if parts.scheduler is not None:
            schedule = DrivenSchedule(parts.scheduler, self.driver, self._length.say_longer)
            self.step_hook.on_taken(schedule.take)
            self._leaves.append(schedule.leave)
        for leave in self._leaves:
            weakref.finalize(self, while_alive(leave))  # a user's hook on the optimizer may know this loader
        weakref.finalize(self, holds.say)  # of a loader that is never iterated

    def _stepped(self) -> None:
        """Take note of a step of the optimizer, as long as there is something to learn from it."""
        if not self.misuse.saw_a_step:
            self.misuse.stepped()
        if self._look_ahead is not None and not self._look_ahead.settled:
            self._look_ahead.works()
        self.batch_of_step.stepped()

    def close(self) -> None:
        self._closed = True
        self.source.close()
        self.run.after_epoch()  # an iterator that is still held has not ended its own
        for leave in self._leaves:
            leave()

    def epochs(self, n: int) -> Iterator[int]:
        check_size("n", n)
        n = int(n)  # torch.load would refuse a state with NumPy's
        trained = self.misuse.ever_stepped or self.batch_of_step.has_trained
        if not self._begun and not trained and self.source.latest is not None:
            self.run.start(self._length.epochs)  # what was looked at before is no part of the run
        known = self._length.epochs
        if (known is None and self.run.has_begun) or not self._length.say(n):
            said = "a run of unknown length has begun" if known is None else f"the run has {known:g} epochs"
            raise ValueError(f"epochs({n}): {said}: give epochs={n} to the loader, or a scheduler of that length")
        if known != n:
            self.run.controller.plan(n)
        self.run.controller.holds.remove(LENGTH)
        progress = self.run.controller.progress_tracker
        if not self._begun:
            progress.set_epoch(0)  # a look at a batch before was no epoch of the run
            self.source.begin_run()
        self._begun = True
        self.run.controller.end_by_progress()
        if self.run.is_over or progress.epoch >= n:
            log.warning("epochs(%d): the run is over, so there are none left: to train on, build another loader", n)
        return self._count_epochs(n)

    def _count_epochs(self, n: int) -> Iterator[int]:
        # A run resumed at its very end has its last batch to be done with.
        while (epoch := self.run.controller.progress_tracker.epoch) < n and not self.run.is_over:
            self.batch_of_step.looks.asks_for(epoch)
            yield epoch  # one, whatever the loop's body does with the loader
            self.run.controller.progress_tracker.set_epoch(epoch + 1)

    @property
    def length(self) -> int:
        """Batches of the epoch under way, or of the one before it begins: those delivered, and those left."""
        self.batch_of_step.drawn.asked(frame(2))
        passes = self.source.latest  # None: before the first epoch, or of plain batches
        if passes is None:
            return self.source.length
        return passes.begun + self.run.batches_left(passes.cut.left, self.source.batch_sampler.batches_per_step)

    def iterate(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """An epoch's batches; `fetch` begins the DataLoader's own iteration."""
        if self._closed:
            raise RuntimeError("close() was called, so no hyperparameter would follow the batch: build another loader")
        if self.run.is_over or not is_grad_enabled():  # for `update_bn`, say, or an accuracy
            return self._plain(fetch)
        self._follow_the_model()
        self._begin_epoch()
        if not self._warned and self.run.controller.rules.may_change:
            self._warned = self._length.say_unknown()
        source = self.source
        passes = source.iterate(fetch, self.run.controller.progress_tracker.by_shares)
        self._look_ahead = look_ahead = self._begin_look_ahead()
        self.batch_of_step.follow(look_ahead)
        events = LoaderEpoch(self._parts, passes, self.step_hook, look_ahead, owner=self)
        is_new = passes.is_new if source.streams else None
        next_pass = partial(source.next_pass, passes, fetch)
        return self.run.deliver(passes.fetched, passes.queue, look_ahead, events, is_new, next_pass)

    def _plain(self, fetch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Batches that are neither counted nor measured."""
        if not self._warned_of_plain:
            self._warned_of_plain = True
            # Of a batch that cannot change, these are the stock loader's, whoever counts.
            level = logging.WARNING if self.run.controller.rules.may_change else logging.INFO
            log.log(level, OVER if self.run.is_over else NO_GRADIENTS)
        self.source.begin_plain()
        return fetch()

    def _begin_look_ahead(self) -> LookAhead:
        """The way in which the loop takes the batches of the iteration that begins, as stated or as it will show.

        Of several loaders the optimizer follows the one that is trained on: from here on where that is stated, else
        from the first backward pass on.
        """
        which, follow_this = self.batch_of_step, self.step_hook.take
        stated = self._parts.look_ahead or (StillAhead if which.last_batch.is_awaited else None)
        if stated is not None:
            follow_this()
            look_ahead = stated()
            if look_ahead.settled:
                self._length.trains()
            return look_ahead
        tell = while_alive(which.look_ahead)  # which follows it in turn

        def told(unclear: bool, fetched: int | None) -> None:
            follow_this()
            tell(unclear, fetched)

        sharded = self.run.model if self._is_sharded() else None
        return DetectLookAhead(a_few_trained(self._parts.optimizer), told, sharded, which.looks.ever_trained)

    def _begin_epoch(self) -> None:
        controller, now = self.run.controller, self.source.batch_sampler.pass_samples
        progress = controller.progress_tracker
        if progress.by_shares and now != controller.epoch_samples and not self.run.tracker.under_way:
            # What is left of a pass may be samples that are there no longer.
            self.source.drop_rest()
            progress.end_by_epochs()
            controller.holds.warn(OTHER_LENGTH, now, controller.epoch_samples)
            self._length.know_why()
        # A loop that has yet to work on the planned run's last batch may end with it.
        samples = progress.samples - self.batch_of_step.last_batch.is_awaited
        if progress.max_extra is None and not self.run.tracker.under_way and self._length.begin_epoch(samples):
            self.run.controller.plan(self._length.epochs)
            self._warned = True

    def _settle_length(self, batches_per_call: float | None) -> None:
        """The scheduler's calls have shown what its steps count."""
        controller = self.run.controller
        if self._length.settle(batches_per_call):
            controller.plan(self._length.epochs)
        self._warned = True  # the length is known, or it has been said why it is not
        if self._length.holds:
            controller.holds.add(LENGTH)
        else:
            controller.holds.remove(LENGTH)

    def _is_counted_by_the_loop(self, batches: int) -> None:
        """The scheduler's calls have shown that the loop counts so many batches to an epoch by itself."""
        self.run.controller.holds.doubt(BY_COUNT, COUNTED, batches)
        self._length.know_why()

    def _follow_the_model(self) -> None:
        """Begin anew where the model has been moved before the run has begun: times and memory are of its device."""
        if not self.run.has_begun and self.run.controller.device != self.run.model_device:
            self.run.start(self._length.epochs)
            if self._begun:
                self.run.controller.end_by_progress()

    def gradients_are_ready(self) -> None:
        if self.run.measuring.watches:
            self.run.measuring.before_step()
        if self._parts.ready is not None:
            self._parts.ready.say()

    def step(self, batch: Any, scaler: Any, before_step: Callable[[], None] | None) -> Tensor:
        if self._parts.loss is None:
            raise ValueError("step() has to know the loss: give loss_func= or batch_loss= to the loader")
        if self.source.ranks.world_size > 1:
            raise NotImplementedError(
                "step() cannot run a batch in pieces where several ranks wait for each other's gradients: "
                "call loss.backward() and optimizer.step()"
            )
        if self._look_ahead is not None:
            self._look_ahead.works()
        self._steps = self._steps or LoaderStep(self.run, self._parts.optimizer, self._parts.loss)
        return self._steps(batch, scaler, before_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.run.state_dict(),
            "length": self._length.state_dict(),
            "world_size": self.source.ranks.world_size,
            "source": self.source.state_dict(self.run.tracker.under_way),
            "schedule": self.driver.state_dict(),
            "misuse": self.misuse.state_dict(),
            "loop": self.batch_of_step.looks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_version(state)
        this = self.run.controller
        state = for_ranks(
            state,
            self.source.ranks.world_size,
            start_batch_size=this.start_batch_size,
            batches_per_step=this.batches_per_step,
            epoch_samples=this.epoch_samples,
        )
        self.run.check_state(state)
        self._begun, rest = True, self.source.read(state["source"])
        self._length.load_state_dict(state["length"])
        self.run.start(self._length.epochs)
        self.run.load_state_dict(state)
        if not self._length.holds:
            self.run.controller.holds.remove(LENGTH)
        self.source.go_on(state["source"], rest)
        self.driver.load_state_dict(state["schedule"])
        self.misuse.load_state_dict(state["misuse"])
        self.batch_of_step.looks.load_state_dict(state["loop"])


def _scale_of_step(session_of: weakref.ref[LoaderSession]) -> Scale:
    """The scale of the optimizer's step that is about to be made; no scale where the loader was dropped."""
    # This runs at every step, so it asks nothing that a step has shown already.
    session = session_of()
    if session is None:
        return Scale()
    run, which = session.run, session.batch_of_step
    if not which.is_clear:
        session._stepped()
    if run.measuring.watches and session.measures_at_step:
        run.measuring.before_step()
    if which.lost.by is not None:
        return run.controller.scales[which.lost.cut_size()]
    return run.controller.scales[run.tracker.current[0]]  # its cut size
