"""AdaptiveBatchSize: the callback that translates fastai's events for a training run."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from fastai.callback.core import CancelFitException
from fastai.learner import Learner, Recorder

from ..checks import check_model
from ..decision import ROUNDING
from ..model import OF_A_LEARNER, BatchLoss
from ..run import RunReport, Settings, TrainingRun, TrialStep, check_version, shows_shared_arguments
from ..timing import PER_STEP_OF_A_LEARNER
from .batches import AdaptiveBatches
from .columns import Columns, QuickCallback, begins_fit
from .finder import bs_find
from .hyperparameters import FastaiStepHook, is_adaptive
from .learner import (
    accumulation,
    batch_loss,
    batch_of,
    check_alone,
    check_loader,
    epoch_samples,
    hand_back_accumulation,
    is_language_model,
    reset_states,
    splitting,
    standalone_loss,
    validation_batch_size,
)
from .other_callbacks import OTHER_LENGTH, OtherCallbacks, has_schedule
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
    order, run_valid = 61, False
    # A run belongs to its process, so a callback that is pickled or exported keeps its arguments alone.
    _stateattrs = ("_training", "_hook", "_steps", "_batches", "_dl", "_followed", "_others", "_new_steps")

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

    @property
    def learn(self) -> Any:
        """The Learner that has this callback; None if there is none."""
        return self.__dict__.get("_learner")

    @learn.setter
    def learn(self, learner: Any) -> None:  # by which fastai adds and removes a callback
        before, self.__dict__["_learner"] = self.learn, learner
        if learner is not None:
            learner.add_cb(self._columns)
        elif before is not None:
            before.remove_cb(self._columns)
            hand_back_accumulation(before)

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

        Empty before the first fit, unless a state was loaded.
        """
        return self._training.state_dict() if self._training else self._resumed or {}

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
        self.run = self._awaits_epoch = begins_fit(self.learn)

    def _begin(self) -> None:
        self._awaits_epoch = False
        learn, dl, model = self.learn, self.dls.train, self.learn.model
        check_loader(dl)
        check_model(model)
        check_alone(learn, AdaptiveBatchSize)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("the model has no trainable parameter: unfreeze it, or train without AdaptiveBatchSize")
        may_grow = self._settings.measures or callable(self._settings.target)
        start = accumulation(learn, dl.bs) if may_grow else dl.bs
        samples, certain = epoch_samples(dl), is_language_model(dl)
        given, split = self._settings.split is not None or certain, splitting(self._settings.split, certain=certain)
        standalone = standalone_loss(learn, split, given)
        in_pieces = start != dl.bs or certain
        self._validated_by = None if in_pieces else validation_batch_size(learn)
        self._training = run = TrainingRun(
            self._settings, model, getattr(self.opt, "opt", self.opt),
            batch_size=start, epoch_samples=samples, adaptive=is_adaptive(self.opt),
            loss=BatchLoss(batch_loss=batch_loss(learn), called=OF_A_LEARNER, split=split, split_given=given),
            trial=TrialStep(model, standalone),
            micro_batch_size=dl.bs if in_pieces else None,
            per_step=PER_STEP_OF_A_LEARNER,
        )  # fmt: skip
        if not has_schedule(learn):
            run.controller.rules.expect_no_decay()
        self._follow_the_optimizer(run)
        run.start(self.n_epoch)
        if self._resumed is not None:
            run.load_state_dict(self._resumed)
            run.tracker.begin_anew()  # a fit begins with an epoch
            self._resumed = None
        self._dl, self._epoch_samples = dl, samples
        self._epoch_steps = len(dl) if start == dl.bs else -(-samples // start)
        run.controller.end_by_progress()
        self._planned, self._batches = self.n_epoch, None
        self._new_steps = partial(FastaiStep, learn, run, standalone)
        self._steps = self._new_steps()
        may_change = run.controller.rules.may_change
        self._others = OtherCallbacks(learn, run.controller.holds, self.order, may_change=may_change)
        if may_change:
            doubt_rows(learn, dl, run.controller.holds)

    def before_train(self) -> None:
        """Begin the run in its first epoch, and let the adaptive batches take the place of the loader."""
        if self._awaits_epoch:  # `learn.summary()` calls before_fit and before_epoch too, but trains nothing
            self._begin()
        if self._run.controller.progress_tracker.complete:  # it was resumed from the state of a finished run
            raise CancelFitException
        run, progress = self._run, self._run.controller.progress_tracker
        self._look_at_the_learner()
        run.controller.skip_epochs(self.epoch)  # epochs before `start_epoch`
        progress.set_epoch(self.epoch)
        progress.begin_epoch()
        assert self._hook is not None and self._steps is not None
        self._hook.begin_epoch()
        self._others.begin_epoch(self._hook.rate)
        if progress.by_shares:
            self._place_schedule(progress.effective_samples)
        self.learn.dl = self._batches = AdaptiveBatches(
            self.dl, run, self._leave, partial(reset_states, self.learn), self._batches
        )  # fmt: skip
        self._steps.start()

    def _look_at_the_learner(self) -> None:
        """Follow an optimizer or a training loader that has replaced the first one since."""
        if self.opt is not self._followed:
            self._restore()
            self._follow_the_optimizer(self._run)
            self._steps = self._new_steps()
        dl, start = self.dl, self._run.controller.start_batch_size
        if dl is self._dl:
            return
        check_loader(dl)
        if self._run.controller.rules.may_change:
            doubt_rows(self.learn, dl, self._run.controller.holds)
        samples = epoch_samples(dl)
        if samples != self._epoch_samples:
            log.warning(OTHER_LENGTH, samples, self._epoch_samples)
            self._epoch_samples, self._epoch_steps = samples, -(-samples // start)
            self._run.controller.progress_tracker.end_by_epochs()
        self._dl = dl

    def _follow_the_optimizer(self, run: TrainingRun) -> None:
        self._followed = self.opt
        self._hook = FastaiStepHook(self.opt, self._settings.following)
        run.follow(self._hook.scaler)

    def before_batch(self) -> None:
        """Set the hyperparameters to the batch; correct the totals; measure if it is this batch's turn."""
        run, learn = self._run, self.learn  # looking up what a callback has of its Learner's takes long
        assert self._hook is not None
        self._others.look(self._hook.rate, by_halves=run.measuring.by_halves)
        self._hook.scale(run.scale())
        progress = run.controller.progress_tracker
        if self._batches is not None and (run.tracker.ever_changed or progress.effective_samples != progress.samples):
            learn.n_iter = learn.iter + 1 + self._batches.batches_left
            if hasattr(learn, "progress") and hasattr(learn.progress, "pbar"):
                learn.progress.pbar.total = learn.n_iter
        run.before_batch(batch_of(learn))

    def before_step(self) -> None:
        """The gradients are ready: take in the measurement, if this step is measured."""
        measuring = self._run.measuring
        if measuring.watches:
            measuring.before_step()
        if measuring.by_halves:
            self._others.check()

    def after_batch(self) -> None:
        """Restore the hyperparameters, after the Recorder (50) has seen those used, and place the schedule."""
        if self._hook is not None and self._hook.scaler.is_scaled:
            self._hook.restore()
        run = self._run
        progress = run.controller.progress_tracker
        if run.tracker.ever_changed or progress.effective_samples != progress.samples:
            self._place_schedule(run.tracker.schedule_span[1])

    def _place_schedule(self, samples: float) -> None:
        """Put the schedule where the fixed run's is after `samples` samples, of this epoch or of the whole plan."""
        run, controller = self._run, self._run.controller
        progress = controller.progress_tracker
        if run.tracker.ever_changed or progress.effective_samples != progress.samples:
            # While nothing has changed, fastai's own running sum is left alone. It is the same up to rounding.
            epochs, within = divmod(samples + ROUNDING, self._epoch_samples)
            before = 0 if progress.by_shares else self.epoch
            share = min(within / (controller.start_batch_size * self._epoch_steps), 1.0)
            self.learn.pct_train = min((before + epochs + share) / self._planned, 1.0)

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
        """Restore the hyperparameters and give the training step back."""
        self._restore()
        if self._steps is not None and self._training is not None:
            self._steps.stop()
            self._training.after_epoch()

    @property
    def _run(self) -> TrainingRun:
        if self._training is None:
            raise RuntimeError("AdaptiveBatchSize was added in the middle of a fit: add it before, or by cbs=")
        return self._training


Learner.bs_find = bs_find
Recorder.plot_bs_find = plot_bs_find
Recorder.plot_sched_by_samples = plot_sched_by_samples
