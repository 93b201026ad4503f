"""A run through an AdaptiveDataLoader: its epochs, its iterations, and its state."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from torch import Tensor, is_grad_enabled
from torch.optim import Optimizer

from ..checks import check_size
from ..gradients import is_sharded
from ..hyperparameters import StepHook
from ..model import BatchLoss, CachedFact
from ..run import DetectLookAhead, LookAhead, StillAhead, TrainingRun, check_version
from ..sampling import EpochSource
from ..types import Scale
from .batch_of_step import BatchOfStep
from .drawn import frame
from .epoch import LoaderEpoch
from .length_warnings import BY_COUNT, COUNTED, LENGTH, OTHER_LENGTH
from .loop_facts import GradientsReady
from .misuse import NO_GRADIENTS, OVER, MisuseWarnings
from .other_ranks import for_ranks
from .ranks import RankMeter
from .row_check import RowCheck
from .run_length import RunLength
from .scheduler import SchedulerDriver
from .step import LoaderStep
from .watched_parameters import a_few_others, a_few_trained, group_sizes

log = logging.getLogger(__name__)


class LoaderSession:
    """See AdaptiveDataLoader, whose methods these are.

    Args:
        source: the batches of every epoch.
        run: the training run that they belong to.
        length: length of the run, as far as it is known.
        optimizer: the optimizer that trains.
        following: the hyperparameters of it that follow the batch.
        meter: measures the steps of several ranks; None on one process.
        driver: drives the scheduler.
        loss: the loss of a batch; None where it was not given.
        rows: checks that rows follow samples.
        look_ahead: makes one for each iteration; None: it is found out.
        ready: where an adapter says when gradients are ready; None: they are when the optimizer steps.
    """

    def __init__(
        self,
        source: EpochSource,
        run: TrainingRun,
        length: RunLength,
        optimizer: Optimizer,
        following: Collection[str],
        meter: RankMeter | None,
        driver: SchedulerDriver,
        loss: BatchLoss | None,
        rows: RowCheck,
        look_ahead: Callable[[], LookAhead] | None = None,
        ready: GradientsReady | None = None,
    ) -> None:
        self.source, self.run, self.driver, self.meter, self._rows = source, run, driver, meter, rows
        self._new_look_ahead, self._ready, self.measures_at_step = look_ahead, ready, ready is None
        self._length, self._optimizer, self._following, self._loss = length, optimizer, following, loss
        run.start(length.epochs)
        length.warn_by(run.controller.holds.warn if run.controller.rules.may_change else log.debug)
        if length.steps_of_epoch is not None:
            driver.know(length.steps_of_epoch, source.batch_sampler.batches_per_step)
        if meter is not None:
            run.count_memory_of(meter.gradients)
        if length.holds:
            run.controller.holds.add(LENGTH)
        self._begun = False  # whether `epochs` has been called, or a state loaded
        self._look_ahead: LookAhead | None = None  # of the latest iteration
        self._steps: LoaderStep | None = None
        self._warned = self._warned_of_plain = self._closed = False
        self.batch_of_step = BatchOfStep(run, length, source.ranks.world_size, partial(a_few_trained, optimizer))
        self.misuse = MisuseWarnings(
            optimizer, rate_follows=driver.given or not run.controller.rules.may_change, follows=bool(following),
            batches_per_step=run.controller.batches_per_step, holds=run.controller.holds,
            others=CachedFact(run.model, partial(a_few_others, run.model, optimizer), partial(group_sizes, optimizer)),
            parameters=run.model.parameters if run.controller.rules.may_change else None,
        )  # fmt: skip
        self._is_sharded = CachedFact(run.model, partial(is_sharded, run.model))

    def follow(self) -> None:
        """From now on let the hyperparameters follow the batch, as long as there is anybody who sets it."""
        session = weakref.ref(self)  # the optimizer's hooks should not be what keeps a loader alive

        def scale() -> Scale:
            live = session()
            if live is None:
                return Scale()
            run, which = live.run, live.batch_of_step
            if not which.is_clear:
                live._stepped()
            if run.measuring.watches and live.measures_at_step:
                run.measuring.before_step()
            if which.is_lost:
                return run.controller.scales[which.cut_size()]
            return run.controller.scales[run.tracker.current[0]]  # its cut size

        self.step_hook = StepHook(self._optimizer, scale, self._following)
        self.run.follow(self.step_hook.scaler)
        settle = weakref.WeakMethod(self._settle_length)

        def settle_length(batches_per_call: float | None) -> None:
            if (live := settle()) is not None:
                live(batches_per_call)

        self.driver.on_call(settle_length)

        def counted(batches: int) -> None:
            holds.doubt(BY_COUNT, COUNTED, batches)
            length.know_why()

        holds, length = self.run.controller.holds, self._length
        self.driver.on_count(counted)
        weakref.finalize(self, self.step_hook.remove)
        weakref.finalize(self, self.batch_of_step.close)
        weakref.finalize(self, self._rows.close)
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
        self.step_hook.remove()
        self.batch_of_step.close()
        self._rows.close()

    def epochs(self, n: int) -> Iterator[int]:
        check_size("n", n)
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
            self.batch_of_step.asks_for(epoch)
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
            if not self._warned_of_plain:
                self._warned_of_plain = True
                log.warning(OVER if self.run.is_over else NO_GRADIENTS)
            self.source.begin_plain()
            return fetch()
        self._follow_the_model()
        self._begin_epoch()
        if not self._warned and self.run.controller.rules.may_change:
            self._warned = self._length.say_unknown()
        passes = self.source.iterate(fetch, self.run.controller.progress_tracker.by_shares)
        tell = weakref.WeakMethod(self.batch_of_step.look_ahead)  # which follows it in turn
        follow_this = self.step_hook.take  # of several loaders the optimizer follows the one that is trained on

        def told(unclear: bool, fetched: int | None) -> None:
            follow_this()
            if (live := tell()) is not None:
                live(unclear, fetched)

        stated = self._new_look_ahead or (StillAhead if self.batch_of_step.is_still_ahead else None)
        shown_by = a_few_trained(self._optimizer), told, self.run.model if self._is_sharded() else None
        if stated:
            follow_this()
            self._length.trains()
        self._look_ahead = stated() if stated else DetectLookAhead(*shown_by, self.batch_of_step.ever_trained)
        self.batch_of_step.follow(self._look_ahead)
        events = LoaderEpoch(
            passes, self.source, self.run, self.driver, self.step_hook, self.misuse, self.meter, self._rows,
            self.batch_of_step, self._look_ahead, self,
        )  # fmt: skip
        return self.run.deliver(
            passes.fetched, passes.queue, self._look_ahead, events, passes.is_new if self.source.streams else None,
            partial(self.source.next_pass, passes, fetch),
        )  # fmt: skip

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
        samples = progress.samples - self.batch_of_step.is_still_ahead
        if progress.max_extra is None and not self.run.tracker.under_way and self._length.begin_epoch(samples):
            self.run.controller.plan(self._length.epochs)
            self._warned = True

    def _settle_length(self, batches_per_call: float | None) -> None:
        """The scheduler's calls have shown what its steps count."""
        controller = self.run.controller
        if self._length.settle(batches_per_call):
            controller.plan(self._length.epochs)
        self._warned = True  # the length is known, or it has been said why it is not
        (controller.holds.add if self._length.holds else controller.holds.remove)(LENGTH)

    def _follow_the_model(self) -> None:
        """Begin anew where the model has been moved before the run has begun: times and memory are of its device."""
        if not self.run.has_begun and self.run.controller.device != self.run.model_device:
            self.run.start(self._length.epochs)
            if self._begun:
                self.run.controller.end_by_progress()

    def gradients_are_ready(self) -> None:
        if self.run.measuring.watches:
            self.run.measuring.before_step()
        if self._ready is not None:
            self._ready.say()

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
        self._steps = self._steps or LoaderStep(self.run, self._optimizer, self._loss)
        return self._steps(batch, scaler, before_step)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.run.state_dict(),
            "length": self._length.state_dict(),
            "world_size": self.source.ranks.world_size,
            "source": self.source.state_dict(self.run.tracker.under_way),
            "schedule": self.driver.state_dict(),
            "misuse": self.misuse.state_dict(),
            "loop": self.batch_of_step.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_version(state)
        this = self.run.controller
        state = for_ranks(
            state, self.source.ranks.world_size, start_batch_size=this.start_batch_size,
            batches_per_step=this.batches_per_step, epoch_samples=this.epoch_samples,
        )  # fmt: skip
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
        self.batch_of_step.load_state_dict(state["loop"])
