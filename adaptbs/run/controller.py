"""Decides the batch size of one run, from its noise scale, its step time, its progress and its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from typing import Any

from torch import device as Device

from ..decision import NEWS, DecisionTimer, Progress, is_urgent
from ..gradients import IN_STEP
from ..memory import MemoryLimit
from ..noise_scale import NoiseScaleTracker, student_t
from ..ranks import ALONE, Ranks
from ..report import History, in_words
from ..timing import PER_STEP, TRY, Clock, OverheadBudget, Spent, StepTime, Time
from ..types import COUPLED, Measurement, NoiseScale, Scale
from .efficiencies import SampleEfficiencies
from .holds import Holds
from .rules import SHAPE, ByCutSize, RunRules, check_shape
from .settings import Settings

log = logging.getLogger(__name__)


class Controller:
    """Takes in steps and measurements, and decides from time to time.

    All sizes are samples of an optimizer step. Where a step takes several batches (accumulated, or of several ranks),
    those are cut from it. The user's `batch_size` and `max_batch_size` are those of one batch.

    Args:
        settings: the user's arguments.
        batch_size: samples of the first batches.
        epoch_samples: samples of an epoch.
        adaptive: True if the optimizer divides by the gradient's size (`OptimizerTraits.adaptive`).
        views: names of other noise scales that are measured and only reported.
        batches_per_step: batches that make up an optimizer step, of all ranks together.
        ranks: the ranks that decide alike.
        source: how the run is measured at first.
        per_step: seconds that the face takes at every step, measured or not.

    Raises:
        ValueError: a batch size that this dataset or `max_batch_size` does not allow.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        batch_size: int,
        epoch_samples: int,
        adaptive: bool,
        views: Sequence[str] = (),
        batches_per_step: int = 1,
        ranks: Ranks = ALONE,
        source: str = IN_STEP,
        per_step: float = PER_STEP,
    ) -> None:
        settings.check_start(batch_size, epoch_samples)
        batch_size = int(batch_size) * batches_per_step  # int: torch.load refuses NumPy's
        self._settings, self._overhead = settings, settings.overhead_for(source)
        self._views, self._ranks, self._per_step = tuple(views), ranks, per_step
        self.start_batch_size, self.epoch_samples, self.batches_per_step = batch_size, epoch_samples, batches_per_step
        sizes = {"batch_size": batch_size, "epoch_samples": epoch_samples, "batches_per_step": batches_per_step}
        self.rules = RunRules(settings, adaptive=adaptive, **sizes)
        self._clock: Clock | None = None  # in place of the device's
        self.scales: ByCutSize[Scale] = ByCutSize(self._scale)  # asked for at every step, as are efficiencies
        self.sample_efficiencies = SampleEfficiencies(self._sample_efficiency, self.rules.reference, self.scales)
        self.holds = Holds(batches_per_step)

    def start(self, epochs: float | None, device: Device, memory: MemoryLimit) -> None:
        """Begin a run, and forget any earlier one.

        Args:
            epochs: length of the run; None where it is not known, then decisions are paced by the epoch.
            device: the device that trains.
            memory: what its memory has held so far.
        """
        settings = self._settings
        self.device, self.memory, self.batch_size = device, memory, self.start_batch_size
        self.progress_tracker = Progress(self.epoch_samples, epochs)
        given = StepTime(*settings.step_time) if settings.step_time else None
        how: dict[str, Any] = {"per_step": self._per_step, "clock": self._clock}
        self._budget = OverheadBudget(given, device, self.batch_size, self._overhead, self._ranks, **how)
        self._noise_scales = NoiseScaleTracker(self.progress_tracker.planned, self._views, settings.known_before)
        if self._overhead:
            student_t(settings.confidence, NEWS)  # loads SciPy, which would else be charged to the budget
        self._timer = DecisionTimer(settings.decide_every * self.progress_tracker.planned, settings.prior is not None)
        self._know(None, {})
        self.history = History(self._views, settings.log if self._ranks.rank == 0 else None)
        self._record("start", reason="start")

    def use_clock(self, clock: Clock) -> None:
        """Time this run, and those started later, by another clock; for simulations, before the run begins."""
        self._clock = clock
        self._budget.use_clock(clock)

    def plan(self, epochs: float | None) -> None:
        """Let the run have so many epochs from here on; None: its length is not known."""
        self.progress_tracker.plan(epochs)
        planned = self.progress_tracker.planned
        self._timer.plan(self._settings.decide_every * planned)
        self._noise_scales.plan(planned)
        self._budget.duty.choose_anew()

    def end_by_progress(self) -> None:
        """End the run when its progress is complete, if that is its budget and progress is measured."""
        if self.rules.by_progress and self._overhead and self.progress_tracker.epochs:
            self.progress_tracker.end_by_progress(self._settings.max_extra)

    def hold(self, reason: str) -> None:
        """Keep the batch, and hyperparameters as they are."""
        self.holds.add(reason)
        self.rules.hold()
        self.scales.clear()

    def skip_epochs(self, epochs: int, samples: int = 0) -> None:
        """Begin after so many epochs and samples, where a run is resumed; nothing once the run has begun."""
        if not self.progress_tracker.samples:
            self.progress_tracker.skip(epochs, samples)
            self._timer.decided(self.progress_tracker.effective_samples)

    @property
    def progress(self) -> float:
        """Share of the run done, 0..1; of an epoch, and above 1, where the run's length is not known."""
        return self.progress_tracker.share

    @property
    def step_time(self) -> Time | None:
        """Seconds of a step by batch size, as given or as fitted to the run so far."""
        return self._budget.step_time

    @property
    def overhead_spent(self) -> Spent:
        return self._budget.spent

    @property
    def doubt(self) -> str | None:
        """Why the batch is held, or why the latest estimate is not to be believed as a number, if so."""
        return self.holds.reason or self._noise_scales.doubt(self.noise_scale)

    def _scale(self, cut_size: int) -> Scale:
        return self.rules.scale(cut_size, self._noise_scales.resolved)

    def _sample_efficiency(self, cut_size: int) -> float:
        # A coupled loss has no noise scale to tell, so every sample counts.
        return 1.0 if self._noise_scales.caveat == COUPLED else self.rules.sample_efficiency(cut_size, self.noise_scale)

    def start_clock(self) -> None:
        """Take note that an iteration begins: what lies before it is not timed."""
        self._budget.clock.start()

    def step_ended(self, num_samples: int, cut_size: int, longest: int) -> None:
        """Take note that the loop is through with an optimizer step, and decide if it is time.

        Args:
            num_samples: samples of the step.
            cut_size: the size that it was cut at, samples.
            longest: the longest batch so far, samples of all ranks together.
        """
        self._budget.clock.step(num_samples)
        timer, done = self._timer, self.progress_tracker.effective_samples
        if done < timer.due_at and not timer.new_measurements:
            return
        news = timer.unread_measurements >= NEWS or (timer.new_measurements >= TRY and not self._budget.knows_cost)
        if done >= timer.due_at or (timer.waits and self.rules.needs_noise_scale) or (news and self._look(cut_size)):
            with self._budget.clock.deciding() if timer.new_measurements else nullcontext():  # next to no work
                self._decide(cut_size, longest)

    def measure_next_step(self) -> bool:
        """True if the step that comes is to be measured: by chance, as often as `overhead` allows."""
        duty = self._budget.duty
        if duty.pass_quiet_step():  # as before nearly every step
            return False
        size, planned, done = self.batch_size, self.progress_tracker.planned, self.progress_tracker.effective_samples
        awaited, at = self._timer.awaits(done, size)
        return duty.measure_next(planned / size, awaited, done / planned, planned / self.start_batch_size, at / planned)

    def measuring(self, num_samples: int) -> AbstractContextManager[None]:
        """Put around a measurement of so many samples, to charge its time to `overhead` instead of to the step."""
        return self._budget.clock.measuring(num_samples)

    def measuring_step(self) -> None:
        """The step under way is itself measured: what it takes longer than others is charged to `overhead`."""
        self._budget.clock.measuring_step()

    def measured(self, made: Measurement | None) -> None:
        """Take in a measurement of the current batch; None where it could not be measured."""
        if made is not None:
            progress = self.progress_tracker
            self._noise_scales.add(progress.samples, made, progress.share if progress.epochs else None)
            self._timer.measured()

    def forget_measurements(self) -> None:
        """Know nothing of the noise scale from here on, which holds the batch."""
        self._noise_scales.forget()
        self._know(None, {})

    def no_more_than(self, samples: int | None, event: str, reason: str) -> None:
        """Let a batch have at most so many samples from here on, if any number is given, and record that."""
        if samples is not None:
            self.batch_size = min(self.batch_size, samples * self.batches_per_step)
        self._record(event, reason)

    def _look(self, cut_size: int) -> bool:
        """Look at the new measurements, if there are enough of them. Return True if they call for a decision."""
        if not self._budget.knows_cost:
            with self._budget.clock.deciding():
                self._take_in()
                self._calibrate(cut_size)
        if callable(self._settings.target) or self._timer.unread_measurements < NEWS:
            return False
        self._timer.looked()
        with self._budget.clock.deciding():
            estimate = self._read()
            self._calibrate(cut_size)
        return is_urgent(estimate, self.batch_size, self.progress)

    def _read(self) -> NoiseScale | None:
        self._take_in()
        return self._ranks.agree(self._noise_scales.estimate(self._settings.confidence))

    def _take_in(self, *, alone: bool = False) -> None:
        """Read clock and measurements: the only place where the host waits for the device."""
        self._budget.read(alone=alone)
        for samples, progress, made, norms in self._noise_scales.read():
            self.history.add_measurement(samples, progress, made, norms)
        self.sample_efficiencies.clear()  # a measurement may have found the loss to couple samples

    def _know(self, noise_scale: NoiseScale | None, views: dict[str, NoiseScale]) -> None:
        """Decide by this estimate from here on, and set learning rates by it if it resolves the noise scale."""
        self.noise_scale, self.views = noise_scale, views
        self._noise_scales.go_by(noise_scale)
        self.scales.clear()
        self.sample_efficiencies.clear()

    def _decide(self, cut_size: int, longest: int) -> None:
        settings, progress, share = self._settings, self.progress_tracker, self.progress
        noise_scale = self._read()
        self._know(noise_scale, self._noise_scales.estimate_views(settings.confidence))
        now = self.rules.situation(
            progress, noise_scale=noise_scale, coupled=self._noise_scales.caveat == COUPLED,
            new_measurements=self._timer.new_measurements, batch_size=self.batch_size, step_time=self.step_time,
        )  # fmt: skip
        decision = self._ranks.agree(self.holds.apply(self.rules.decide(now), self.batch_size))
        decision = self.rules.to_few(self.memory.clip(decision, self.batch_size, longest), self.batch_size)
        if decision.batch_size != self.batch_size:
            sizes = self.batch_size, decision.batch_size
            log.info("batch size %d -> %d (%s) at %.0f %%", *sizes, in_words(decision.reason), 100 * share)
        self._noise_scales.say(noise_scale, share)
        # Nobody knows how sure a function of the user's needs to be; and a decision without news says nothing.
        if not callable(settings.target) and self._timer.new_measurements:
            self._budget.duty.decided(decision, self.batch_size, noise_scale)
        self.batch_size = decision.batch_size
        self._timer.decided(progress.effective_samples)
        self._record("decision", decision.reason)
        self._calibrate(cut_size)

    def _calibrate(self, cut_size: int) -> None:
        progress = self.progress_tracker
        left = progress.planned - progress.effective_samples if progress.epochs else self.epoch_samples
        self._budget.calibrate(cut_size, self.batch_size, left, left / max(self._timer.every, self.batch_size))

    def _record(self, event: str, reason: str) -> None:
        progress, size = self.progress_tracker, self.batch_size
        self.history.add_estimate(
            self.noise_scale, self.views, event=event, reason=reason, doubt=self.doubt,
            samples=progress.samples, progress=progress.share if progress.epochs else None,
            batch_size=size // self.batches_per_step, global_batch_size=size, lr_factor=self.scales[size].lr_factor,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """All that decisions depend on: numbers, strings and containers of them."""
        self._take_in(alone=True)
        return {
            **{name: getattr(self, name) for name in (*SHAPE, "batch_size")},
            **{name: part.state_dict() for name, part in self._parts().items()},
            "noise_scale": astuple(self.noise_scale) if self.noise_scale else None,
            "views": {name: astuple(view) for name, view in self.views.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a run of the same shape; else a ValueError says what differs."""
        check_shape(state, self)
        self.batch_size = state["batch_size"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        noise_scale = NoiseScale(*state["noise_scale"]) if state["noise_scale"] else None
        self._know(noise_scale, {n: NoiseScale(*view) for n, view in state["views"].items() if n in self._views})

    def _parts(self) -> dict[str, Any]:
        """All that has a state of its own, by its name in the state."""
        return {
            "progress": self.progress_tracker, "memory": self.memory, "budget": self._budget,
            "noise_scales": self._noise_scales, "timer": self._timer, "history": self.history, "holds": self.holds,
        }  # fmt: skip
