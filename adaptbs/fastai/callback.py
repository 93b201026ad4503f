"""fastai: `learn.fit_one_cycle(n, lr, cbs=AdaptiveBatchSize())` and `learn.bs_find()`."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from fastai.callback.core import CancelFitException
from fastai.learner import Learner, Recorder

from ..decision import ROUNDING
from ..gradients import NoiseMeter, Unsupported, views_of
from ..memory import MemoryTrial, memory_of
from ..model import BatchLoss
from ..run import Controller, RunReport, Settings, measure
from ..types import LRRule, Target
from .batches import AdaptiveBatches
from .columns import Columns, QuickCallback, begins_fit
from .finder import bs_find
from .hyperparameters import FastaiStepHook, is_adaptive
from .learner import (
    accumulation,
    batch_loss,
    carried,
    check,
    check_alone,
    epoch_samples,
    hand_back_accumulation,
    is_language_model,
    loss_apart,
)
from .pictures import ShowBatchSizeCallback, plot_bs_find, plot_sched_by_samples
from .step import FastaiStep

__all__ = ["AdaptiveBatchSize", "ShowBatchSizeCallback", "bs_find"]

log = logging.getLogger(__name__)


class AdaptiveBatchSize(RunReport, QuickCallback):
    """Measures the noise scale while a Learner trains and grows its training batch toward it.

    A fit starts at `learn.dls.bs`. The hyperparameters follow the batch, the schedule runs in samples and ends where it
    would have ended, and after the fit the loaders are what they were. The arguments are those of
    `adaptbs.AdaptiveDataLoader`; none is needed.

    Args:
        max_batch_size: never exceeded, samples; where None an eighth of the training set, at most 32 times
            `base_batch_size`, of which 64 count, or 8 times where that is more.
        base_batch_size: the size the hyperparameters are stated for, samples; `dls.bs` where None.
        target: "goodput", "noise_scale", or `(noise_scale, batch_size, progress) -> wanted batch size`.
        lr_scaling: "auto", "linear", "sqrt", "gain", "none", or `(k, noise_scale) -> factor`.
        transfer: which hyperparameters follow the batch, out of "lr", "betas" (mom and sqr_mom), "eps", "weight_decay".
        budget: "progress": the fit ends when it has come as far as its epochs would have with a small batch, in fewer
            steps and rather more samples, so there may be more epochs, the last a short one; "epochs": after those.
        max_extra: how many more samples than planned a budget of progress may take, as a share of them.
        exceed_memory: let the batch grow past what memory holds, and run it in pieces; on one device that saves no
            time.
        decide_every: share of the run between two decisions.
        confidence: of the reported interval of the noise scale.
        overhead: share of the run's time, as it would be at the first batch size, that measuring may cost; 0 measures
            nothing.
        step_time: (a, b), seconds of a step being a + b B; given, no clock is read and a run can be repeated.
        source: of the measurements: "auto", "halves" or "per_example".
        metric: "adam" reports, beside the plain noise scale that decides, the one in Adam's metric.
        by_group: report the noise scale of each parameter group (of the Learner's splitter) too.
    """

    # After ParamScheduler and ProgressCallback (60): their learning rate is the one to scale, their bar to correct.
    order, run_valid = 61, False

    def __init__(
        self,
        *,
        max_batch_size: int | None = None,
        base_batch_size: int | None = None,
        target: str | Target = "goodput",
        lr_scaling: str | LRRule = "auto",
        transfer: Collection[str] | None = None,
        budget: str = "progress",
        max_extra: float = 1.0,
        exceed_memory: bool = False,
        decide_every: float = 0.05,
        confidence: float = 0.9,
        overhead: float = 0.05,
        step_time: tuple[float, float] | None = None,
        source: str = "auto",
        metric: str = "plain",
        by_group: bool = False,
    ) -> None:
        self._settings = Settings(
            max_batch_size=max_batch_size,
            base_batch_size=base_batch_size,
            target=target,
            lr_scaling=lr_scaling,
            transfer=transfer,
            budget=budget,
            max_extra=max_extra,
            exceed_memory=exceed_memory,
            decide_every=decide_every,
            confidence=confidence,
            overhead=overhead,
            step_time=step_time,
            source=source,
            metric=metric,
            by_group=by_group,
        )
        self._columns = Columns(self)
        self._controller: Controller | None = None
        self._measurer: NoiseMeter | None = None
        self._hypers: FastaiStepHook | None = None
        self._steps: FastaiStep | None = None
        self._trial: MemoryTrial | None = None
        self._resumed: dict[str, Any] | None = None  # to be taken up by the next fit

    @property
    def learn(self) -> Any:
        """The Learner that this is a callback of; None before and after."""
        return self.__dict__.get("_learner")

    @learn.setter
    def learn(self, learner: Any) -> None:  # (by which fastai adds and removes a callback)
        before, self.__dict__["_learner"] = self.learn, learner
        if learner is not None:
            learner.add_cb(self._columns)
        elif before is not None:
            before.remove_cb(self._columns)
            hand_back_accumulation(before)

    @property
    def batch_size(self) -> int | None:
        """The size of the batches that are cut now, samples; None before the first fit."""
        return self._controller.batch_size if self._controller else None

    def state_dict(self) -> dict[str, Any]:
        """What the decisions of the latest fit depend on: numbers, strings and containers of them."""
        if self._controller is None or self._hypers is None:
            return self._resumed or {"controller": None}
        hyperparameters = self._hypers.hyperparameters.state_dict()
        return {"controller": self._controller.state_dict(), "hyperparameters": hyperparameters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next fit go on from `state_dict()`; it raises ValueError if its loader or batch size differ."""
        self._resumed = state if state["controller"] else None

    def before_fit(self) -> None:
        """Begin a run, unless this is a mock fit (`lr_find`) or no fit at all: validation, too, says before_fit."""
        self.run = begins_fit(self.learn)
        if not self.run:
            return
        dl, model = self.dls.train, self.learn.model
        check(dl)
        check_alone(self.learn, AdaptiveBatchSize)
        parameter = next((p for p in model.parameters() if p.requires_grad), None)
        if parameter is None:
            raise ValueError("the model has no trainable parameter: unfreeze it, or train without AdaptiveBatchSize")
        settings, start = self._settings, accumulation(self.learn, dl.bs)
        views = views_of(getattr(self.opt, "opt", self.opt), metric=settings.metric, by_group=settings.by_group)
        memory = memory_of({p.device for p in model.parameters()})
        self._controller = Controller(
            settings,
            batch_size=start,
            epoch_samples=epoch_samples(dl),
            epochs=self.n_epoch,
            adaptive=is_adaptive(self.opt),
            device=parameter.device,
            memory=memory,
            views=tuple(views),
        )
        self._hypers = FastaiStepHook(self.opt, settings.following)
        if self._resumed is not None:
            self._controller.load_state_dict(self._resumed["controller"])
            self._controller.delivery.begin_anew()  # (a fit begins with an epoch)
            self._hypers.hyperparameters.load_state_dict(self._resumed.get("hyperparameters", []))
            self._resumed = None
        self._epoch_steps = len(dl) if start == dl.bs else -(-epoch_samples(dl) // start)
        self._controller.end_by_progress()
        # As many epochs as there may be: fastai counts them when all callbacks are through with `before_fit`.
        self._planned, self.learn.n_epoch = self.n_epoch, self._controller.run.most_epochs
        loss = BatchLoss(batch_loss=batch_loss(self.learn))
        self._measurer = None
        if settings.overhead:
            timed = settings.step_time is None
            self._measurer = NoiseMeter(model, loss, choice=settings.source, views=views, timed=timed)
        self._steps = FastaiStep(self.learn, self._controller)
        self._trial = MemoryTrial(model, loss_apart(self.learn), memory, measures=settings.overhead > 0)
        self._controller.memory.attempt = self._trial
        if start != dl.bs or is_language_model(dl):
            self._controller.memory.accumulate(dl.bs)

    def before_epoch(self) -> None:
        """Show the epochs that are planned, and those that come on top; end the fit where its progress is complete."""
        complete = self._run.run.complete
        self.learn.n_epoch = max(self._planned, self.epoch + 1)
        bar = getattr(getattr(self.learn, "progress", None), "mbar", None)
        if self.n_epoch > self._planned and bar is not None:
            bar.main_bar.total = self.n_epoch
        if complete:
            raise CancelFitException

    def before_train(self) -> None:
        """Cut this epoch's batches at the size of the moment."""
        self._run.skip_epochs(self.epoch)  # those before `start_epoch`
        assert self._hypers is not None
        self._hypers.hyperparameters.count(wait=True)
        if self._by_progress:
            self._place_schedule(self._run.run.worth)
        self.learn.dl = AdaptiveBatches(self.dl, self._run, self._leave)
        assert self._steps is not None
        self._steps.start()

    def before_batch(self) -> None:
        """Set the hyperparameters to the batch; correct the totals; measure if it is this batch's turn."""
        run, learn = self._run, self.learn  # (what a callback has of its Learner's takes long to find)
        assert self._hypers is not None
        self._hypers.scale(run.scale)
        if run.delivery.ever_changed:
            learn.n_iter = learn.iter + 1 + run.batches_left
            if hasattr(learn, "progress") and hasattr(learn.progress, "pbar"):
                learn.progress.pbar.total = learn.n_iter
        assert self._trial is not None
        self._trial.batch = learn.xb, learn.yb, carried(learn)
        self._measure()

    def after_batch(self) -> None:
        """Give the hyperparameters back, after the Recorder (50) has seen what was used, and place the schedule."""
        self._restore()
        self._place_schedule(self._run.delivery.schedule_span[1])

    @property
    def _by_progress(self) -> bool:
        return self._run.run.max_extra is not None

    def _place_schedule(self, samples: float) -> None:
        """Put the schedule where the fixed run's stood after so many samples, of this epoch or of the whole plan."""
        run = self._run
        if run.delivery.ever_changed or run.run.worth != run.run.samples:
            # (While nothing has changed, fastai's own running sum is left alone: the same number but for rounding.)
            epochs, within = divmod(samples + ROUNDING, run.epoch_samples)
            before = 0 if self._by_progress else self.epoch
            share = min(within / (run.start * self._epoch_steps), 1.0)
            self.learn.pct_train = min((before + epochs + share) / self._planned, 1.0)

    def after_train(self) -> None:
        """Leave the Learner where another callback ended the batch's epoch or fit before our turn."""
        self._leave()

    after_epoch = after_fit = after_train

    def _restore(self) -> None:
        if self._hypers is not None:
            self._hypers.restore()

    def _leave(self) -> None:
        """Have no part in the Learner's batches any more."""
        self._restore()
        if self._steps is not None and self._trial is not None:
            self._steps.stop()
            self._trial.batch = None

    @property
    def _run(self) -> Controller:
        if self._controller is None:
            raise RuntimeError("AdaptiveBatchSize was added in the middle of a fit: add it before, or by cbs=")
        return self._controller

    def _measure(self) -> None:
        if self._measurer is None or not self._run.measure_next():
            return
        try:
            measure(self._run, self._measurer, (self.xb, self.yb, carried(self.learn)))
        except Unsupported:
            raise  # a source was asked for that cannot be
        except Exception as error:
            # A Learner may compute its loss with the help of other callbacks; then it cannot be computed apart.
            log.warning("this Learner's loss cannot be measured, so the batch size is held: %s", error)
            self._measurer = None
            self._run.forget_measurements()


Learner.bs_find = bs_find
Recorder.plot_bs_find = plot_bs_find
Recorder.plot_sched_by_samples = plot_sched_by_samples
