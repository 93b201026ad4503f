"""AdaptiveBatchSize: the callback that translates fastai's events for a training run."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fastai.callback.core import CancelFitException
from fastai.learner import Learner, Recorder

from ..model import a_few_of
from ..run import PassedOver, RunReport, Settings, TrainingRun, check_version, shows_shared_arguments
from .batches import AdaptiveBatches
from .columns import Columns, QuickCallback, begins_fit
from .finder import bs_find
from .fit_run import check_fit, run_of_fit
from .hyperparameters import FastaiStepHook
from .learner import accumulating, batch_of, check_loader, epoch_samples, reset_states
from .other_callbacks import OTHER_BS, OTHER_LENGTH, OtherCallbacks
from .pictures import plot_bs_find, plot_sched_by_samples
from .rows import doubt_rows
from .step import FastaiStep

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..run import SharedArguments

SLOW_VALIDATION = 4  # training batch over validation batch from which on the summary mentions validation


log = logging.getLogger(__name__)


@shows_shared_arguments
class AdaptiveBatchSize(RunReport, QuickCallback):
    """Measures the noise scale while a Learner trains and grows its training batch toward it.

    A fit starts at `learn.dls.bs`. The hyperparameters follow the batch. The schedule runs in samples and ends where it
    would have ended. After the fit the loaders are as they were before. No argument is needed.

    Args:
        shared arguments: documented by `Settings`.
    """

    # After ParamScheduler and ProgressCallback (60): their learning rate is the one to scale, their bar to correct.
    order, run_valid, _learner = 61, False, None
    # A run belongs to its process, so a callback that is pickled or exported keeps its arguments alone.
    _stateattrs = (
        "_training", "_hook", "_steps", "_batches", "_dl", "_followed", "_others", "_new_steps", "_passed_over",
        "_switched_off",
    )  # fmt: skip

    def __init__(self, **arguments: Unpack[SharedArguments]) -> None:
        given: dict[str, Any] = dict(arguments)
        self._settings = Settings.taken_from(given)
        if given:
            raise TypeError(f"AdaptiveBatchSize() got an unexpected keyword argument {next(iter(given))!r}")
        self._columns = Columns(self)
        self._init_state()
        self._awaits_epoch = False  # True from before_fit until the first epoch, which begins the run
        self._resumed: dict[str, Any] | None = None  # to be taken up by the next fit
        self._validated_by: int | None = None  # samples of a validation batch, of the latest fit

    def _init_state(self) -> None:  # fastai's, which also runs when a pickled callback is loaded
        self._training: TrainingRun | None = None
        self._hook: FastaiStepHook | None = None
        self._steps: FastaiStep | None = None
        self._batches: AdaptiveBatches | None = None  # of the latest epoch
        self._switched_off: list[Any] = []  # the GradientAccumulation callbacks, in the training part of an epoch

    def _come_to(self, learner: Any) -> None:  # by which fastai adds and removes a callback
        before = self.learn
        if before is not None:
            self._leave()  # of a fit that an error has ended before its first batch
        self.__dict__["_learner"] = learner
        if learner is not None:
            learner.add_cb(self._columns)
        elif before is not None:
            before.remove_cb(self._columns)

    # Read several times at each step, so it is read without a line of Python.
    learn = property(attrgetter("_learner"), _come_to, doc="The Learner that has this callback; None if there is none.")

    @property
    def training_run(self) -> TrainingRun | None:
        """The run of the latest fit, for tools that look inside or simulate; None before the first."""
        return self._training

    @property
    def batch_size(self) -> int | None:
        """The size of the batches that are cut now, samples; None before the first fit."""
        return self._controller.batch_size if self._controller else None

    @property
    def _notes(self) -> tuple[str, ...]:
        size, largest = self._validated_by, self.batch_size
        if size is None or largest is None or SLOW_VALIDATION * size > largest:
            return ()
        return (
            f"Validation ran in batches of {size:,}, in time that is not counted here. It needs no gradients, so "
            f"larger\nones fit: `learn.dls.valid.bs = {largest}`, or `val_bs={largest}` where dataloaders() makes "
            "them.",
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the latest fit, for `load_state_dict`: numbers, strings and containers of them.

        Once a state was loaded it is that one, until the next fit. Empty before the first.
        """
        return self._resumed or (self._training.state_dict() if self._training else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next fit continue from `state_dict()`.

        Raises:
            ValueError: if the state has another version; in the next fit, if its loader or batch size differs.
        """
        if state:
            check_version(state)
        self._resumed = state or None

    def before_fit(self) -> None:
        """Let the first epoch begin a run, unless this is a mock fit (`lr_find`) or a validation."""
        if not self.learn.lock.locked():  # which a validation holds
            self._leave()  # as above
        if begins_fit(self.learn):
            self._awaits_epoch = True
        else:  # also a validation within a fit, before its first epoch
            self.sit_out()

    def _begin(self) -> None:
        self._awaits_epoch = False
        learn, dl = self.learn, self.dls.train
        check_fit(learn, dl, AdaptiveBatchSize)
        run, self._plan, standalone, self._validated_by = run_of_fit(learn, dl, self._settings)
        self._training = run
        self._follow_the_optimizer(run)
        run.start(self.n_epoch)
        if self._resumed is not None:
            run.load_state_dict(self._resumed)
            run.tracker.begin_anew()  # a fit begins with an epoch
            self._resumed = None
        run.controller.end_by_progress()
        self._dl, self._batches, self._bs = dl, None, dl.bs
        self._new_steps = partial(FastaiStep, learn, run, standalone)
        self._steps = self._new_steps()
        may_change = run.controller.rules.may_change
        self._others = OtherCallbacks(learn, run.controller.holds, self.order, may_change=may_change)
        self._passed_over = PassedOver(run, lambda: a_few_of(list(learn.model.parameters())), is_due=may_change)
        if may_change:
            doubt_rows(learn, dl, run.controller.holds)

    def before_train(self) -> None:
        """Begin the run in its first epoch, and let the adaptive batches take the place of the loader."""
        if self._awaits_epoch:  # `learn.summary()` calls before_fit and before_epoch too, but trains nothing
            self._begin()
        if self._run.controller.progress_tracker.complete:  # it was resumed from the state of a finished run
            raise CancelFitException
        run, progress = self._run, self._run.controller.progress_tracker
        if getattr(self.dl, "bs", None) != self._bs and run.controller.rules.changes_nothing:
            self.sit_out()  # the batch is the user's
            return
        self._look_at_the_learner()
        run.controller.skip_epochs(self.epoch)  # epochs before `start_epoch`
        progress.set_epoch(self.epoch)
        progress.begin_epoch()
        assert self._hook is not None and self._steps is not None
        self._hook.begin_epoch()
        self._others.begin_epoch(self._hook.rate)
        if progress.by_shares and (run.tracker.ever_changed or progress.effective_samples != progress.samples):
            self.learn.pct_train = self._plan.share_after(progress.effective_samples, 0)
        self.learn.dl = self._batches = AdaptiveBatches(
            self.dl, run, self._leave, partial(reset_states, self.learn), self._batches
        )  # fmt: skip
        self._steps.start()
        if self._settings.may_grow:
            self._switched_off = accumulating(self.learn)  # in each epoch: a validation within the fit switches them on
            for cb in self._switched_off:
                cb.run = False

    def _look_at_the_learner(self) -> None:
        """Follow an optimizer or a training loader that has replaced the first one since."""
        if self.opt is not self._followed:
            self._restore()
            self._follow_the_optimizer(self._run)
            self._steps = self._new_steps()
        dl, plan = self.dl, self._plan
        if dl is self._dl:
            if dl.bs != self._bs:
                log.warning(OTHER_BS, dl.bs, self.batch_size)
                self._bs = dl.bs
            return
        check_loader(dl)
        if self._run.controller.rules.may_change:
            doubt_rows(self.learn, dl, self._run.controller.holds)
        samples = epoch_samples(dl)
        if samples != plan.epoch_samples:
            log.warning(OTHER_LENGTH, samples, plan.epoch_samples)
            self._plan = replace(plan, epoch_samples=samples, epoch_steps=-(-samples // plan.start))
            self._run.controller.progress_tracker.end_by_epochs()
        self._dl, self._bs = dl, dl.bs

    def _follow_the_optimizer(self, run: TrainingRun) -> None:
        self._followed = self.opt
        self._hook = FastaiStepHook(self.opt, self._settings.following)
        run.follow(self._hook.scaler)

    def before_batch(self) -> None:
        """Set the hyperparameters to the batch; correct the totals; measure if it is this batch's turn."""
        # This runs at every step, with the processor's caches full of the model's. The less it touches, the better. To
        # look up what a callback has of its Learner's takes long.
        run, learn, hook = self._training or self._run, self.learn, self._hook
        assert hook is not None
        controller, tracker = run.controller, run.tracker
        self._others.look(hook, run)
        hook.scale(controller.scales[tracker.current.cut_size])
        progress = controller.progress_tracker
        if self._batches is not None and (tracker.ever_changed or progress.effective_samples != progress.samples):
            learn.n_iter = learn.iter + 1 + self._batches.batches_left
            # The ProgressCallback. Where there is none, hasattr would look for it in the model, at every step.
            if "progress" in learn.__dict__ and hasattr(learn.progress, "pbar"):
                learn.progress.pbar.total = learn.n_iter
        run.before_batch(batch_of(learn))

    def before_step(self) -> None:
        """The gradients are ready: take in the measurement, if this step is measured."""
        run, others = self._training or self._run, self._others
        measuring = run.measuring
        if run.tracker.ever_changed and self._passed_over.is_due:
            self._passed_over.trains()
        if measuring.watches:
            measuring.before_step()
        if others.changes.waits and measuring.by_halves:
            others.changes.check()

    def after_batch(self) -> None:
        """Restore the hyperparameters, after the Recorder (50) has seen those used, and place the schedule."""
        hook, run = self._hook, self._training or self._run
        if hook is not None and hook.scaler.is_scaled:
            hook.restore()
        progress = run.controller.progress_tracker
        # While nothing has changed, fastai's own running sum is left alone. It is the same up to rounding.
        if run.tracker.ever_changed or progress.effective_samples != progress.samples:
            before = 0 if progress.by_shares else self.epoch  # by shares the samples are those of all epochs
            self.learn.pct_train = self._plan.share_after(run.tracker.schedule_span[1], before)
        if run.tracker.ever_changed and self._passed_over.is_due:  # here, as a batch that is cancelled comes here alone
            self._passed_over.look(True)

    def after_train(self) -> None:
        """Leave the Learner if another callback ended the epoch or the fit before our turn."""
        self._leave()

    after_epoch = after_train

    def after_fit(self) -> None:
        """Leave the Learner, and drop the rest of a pass over its data."""
        self._leave()
        self._batches = self._dl = self._followed = None
        self._awaits_epoch = False

    def _restore(self) -> None:
        if self._hook is not None:
            self._hook.restore()

    def _leave(self) -> None:
        """Restore the hyperparameters, and give the loader and the training step back."""
        self._restore()
        if self._batches is not None and self.learn.__dict__.get("dl") is self._batches:  # also after Ctrl-C
            self.learn.dl = self._dl
        if self._steps is not None and self._training is not None:
            self._steps.stop()
            self._passed_over.close()
            self._training.after_epoch()
        for cb in self._switched_off:
            cb.run = True
        self._switched_off = []

    @property
    def _run(self) -> TrainingRun:
        if self._training is None:
            raise RuntimeError("AdaptiveBatchSize was added in the middle of a fit: add it before, or by cbs=")
        return self._training


Learner.bs_find = bs_find
Recorder.plot_bs_find = plot_bs_find
Recorder.plot_sched_by_samples = plot_sched_by_samples
