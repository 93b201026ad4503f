"""Wires estimate, step time, policy and learning rate together, and remembers the run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, TypeVar

from ..decision import (  # fmt: skip
    NEWS,
    DecisionTimer,
    Progress,
    Situation,
    critical_over_simple,
    decide,
    early_limit,
    efficiency_floor,
    is_urgent,
    largest_batch_size,
    rate,
    reference_batch_size,
)
from ..hyperparameters import LearningRateScale, lr_rule
from ..memory import DeviceMemory, MemoryLimit
from ..noise_scale import NoiseScaleTracker, student_t
from ..ranks import ALONE, Ranks
from ..report import History
from ..sampling import BatchInfo
from ..timing import TRY, OverheadBudget, StepTime, Time
from ..types import COUPLED, Measurement, NoiseScale, Scale
from .look_ahead import LookAhead, NoLookAhead
from .settings import Settings
from .tracker import BatchTracker

if TYPE_CHECKING:
    from torch import device as Device

log = logging.getLogger(__name__)
T = TypeVar("T")


class Controller:
    """Sets the batch size of one run.

    Whoever delivers batches asks it for the size of the next (`batch_size`), runs them through `deliver`, hands it
    measurements when `measure_next` says so, and multiplies the learning rate by `lr_factor`.

    All sizes in here are samples of an optimizer step. Where a step takes several deliveries (`parts`: accumulated
    batches, ranks), those are cut from it; the user's `batch_size` and `max_batch_size` are of a delivery.

    Args:
        settings: the user's arguments.
        batch_size: of the first deliveries, samples.
        epoch_samples: samples of an epoch.
        epochs: length of the run; None where that is not known, then pace is counted by the epoch.
        adaptive: whether the optimizer divides by the gradient's size (`lr_scaling.is_adaptive`).
        device: that trains.
        memory: what it holds; not asked where `step_time` is given.
        views: names of other noise scales that are measured and only reported.
        parts: deliveries that make up a step, on `ranks` that decide alike.
        placed: told where the schedule is before and after each batch that the loop comes to work on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        batch_size: int,
        epoch_samples: int,
        epochs: int | None,
        adaptive: bool,
        device: Device,
        memory: DeviceMemory | None = None,
        views: Sequence[str] = (),
        parts: int = 1,
        placed: Callable[[float, float], None] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        settings.check_start(batch_size, epoch_samples)
        batch_size = int(batch_size) * parts  # (a NumPy integer would stand in the way of torch.load)
        self._settings, self.device, self.parts, self._ranks = settings, device, parts, ranks
        self.start = self.batch_size = batch_size
        self.base_batch_size = int(settings.base_batch_size or batch_size)
        largest = min(epoch_samples // 8, largest_batch_size(self.base_batch_size))
        self.max_batch_size = settings.max_batch_size * parts if settings.max_batch_size else max(batch_size, largest)
        self.epoch_samples, self._epochs = epoch_samples, epochs
        rule = lr_rule(settings.lr_scaling, adaptive=adaptive, base_batch_size=self.base_batch_size)
        self._lr = LearningRateScale(rule, self.base_batch_size)
        self.critical, self._adaptive = critical_over_simple(adaptive), adaptive
        self.run = Progress(epoch_samples, epochs)
        given = StepTime(*settings.step_time) if settings.step_time else None
        self._time = OverheadBudget(given, device, batch_size, settings.overhead, ranks)
        self.memory = MemoryLimit(None if given else memory, settings.exceed_memory, parts, ranks)
        self._measurements = NoiseScaleTracker(self.run.planned, views)
        if settings.overhead:
            student_t(settings.confidence, NEWS)  # loads SciPy, which would else be charged to the budget
        self._pace = DecisionTimer(settings.decide_every * self.run.planned)
        self.delivery = BatchTracker(self.run, batch_size, worth=self._worth, stepped=self._stepped, placed=placed)
        self.noise_scale: NoiseScale | None = None
        self.views: dict[str, NoiseScale] = {}
        self.history = History(views)
        self._record("start", reason="start")

    def end_by_progress(self) -> None:
        """End the run when its progress is complete, if that is its budget and progress is measured."""
        if self._settings.budget == "progress" and self._settings.overhead and self._epochs:
            self.run.max_extra = self._settings.max_extra

    @property
    def progress(self) -> float:
        """Share of the run done, 0..1; of an epoch, and above 1, where the run's length is not known."""
        return self.run.share

    @property
    def step_time(self) -> Time | None:
        """Seconds of a step by batch size, as given or as fitted to the run so far."""
        return self._time.step_time

    @property
    def lr_factor(self) -> float:
        """Of the learning rate of the delivered batch."""
        return self.scale.lr_factor

    @property
    def scale(self) -> Scale:
        """What the hyperparameters change by, at the size the batch was cut at: a short last batch keeps its step."""
        return self._lr.scale(self.delivery.in_hand.nominal, self.noise_scale)

    @property
    def batches_left(self) -> int:
        """Batches still to come in this epoch, at the size of now."""
        return -(-(self.epoch_samples - self.run.epoch_position) // self.batch_size)

    def deliver(self, batches: Iterable[T], issued: deque[BatchInfo], loop: LookAhead | None = None) -> Iterator[T]:
        """Pass an epoch's batches on, keep count, and decide between them; end where the run does.

        Args:
            batches: an epoch of them, or what was left of the one under way when a state was saved.
            issued: what each was cut at, in the same order, filled by the sampler as it goes; a batch leaves it when
                the loop comes to work on it.
            loop: tells which batch that is; the latest where None.
        """
        self._time.clock.start()
        return self.delivery.deliver(batches, issued, loop or NoLookAhead())

    def _stepped(self, length: int) -> None:
        """The loop is through with a step of so many samples."""
        self._time.clock.step(length)
        if (self._pace.news or self._pace.is_turn(self.run.worth)) and self._due():
            with self._time.clock.deciding():
                self._decide()

    def measure_next(self) -> bool:
        """Whether the batch just fetched should be measured: by chance, as often as `overhead` allows."""
        return self.delivery.fetched.ends_step and self.measure_next_step()

    def measure_next_step(self) -> bool:
        return self._time.duty.measure_next(self.run.planned / self.batch_size)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Put around a measurement, to charge its time to `overhead` instead of to the step."""
        with self._time.clock.measuring(self.delivery.fetched.length):
            yield

    def forget_measurements(self) -> None:
        """Know nothing of the noise scale from here on, which holds the batch."""
        self._measurements.forget()
        self.noise_scale, self.views = None, {}

    def skip_epochs(self, epochs: int) -> None:
        """Begin after so many epochs, where a run is resumed; nothing once samples have been delivered."""
        if not self.run.samples:
            self.run.skip(epochs)
            self._pace.decided(self.run.worth)

    def measured(self, made: Measurement | None) -> None:
        """Take in a measurement of the delivered batch; None where it could not be measured."""
        if made is not None:
            self._measurements.add(self.run.samples, made, self.progress if self._epochs else None)
            self._pace.measured()

    def _worth(self, batch_size: int) -> float:
        if self._measurements.caveat == COUPLED:
            return 1.0  # (a sample is a sample, also where there is no noise scale to tell otherwise)
        return rate(batch_size, reference_batch_size(self.base_batch_size), self.noise_scale, self.critical)

    def _due(self) -> bool:
        pace = self._pace
        if pace.is_turn(self.run.worth):
            return True
        if pace.news == TRY and not self._time.knows_cost:
            with self._time.clock.deciding():
                self._take_in()
                self._calibrate()
        if callable(self._settings.target) or pace.unseen < NEWS:
            return False
        pace.unseen = 0  # enough to tell whether the batch is still far from where it should be
        with self._time.clock.deciding():
            estimate = self._read()
            self._calibrate()
        return is_urgent(estimate, self.batch_size, self.progress)

    def _read(self) -> NoiseScale | None:
        self._take_in()
        return self._ranks.agree(self._measurements.estimate(self._settings.confidence))

    def _take_in(self, *, alone: bool = False) -> None:
        """Read clock and measurements, the only place where the host waits for the device."""
        self._time.read(alone=alone)
        for samples, progress, made, norms in self._measurements.read():
            self.history.add_measurement(samples, progress, made, norms)

    def _decide(self) -> None:
        # Between decisions the estimate stays: a learning rate rule may depend on it.
        self.noise_scale = self._read()
        self.views = self._measurements.estimate_views(self._settings.confidence)
        now = Situation(
            noise_scale=self.noise_scale,
            coupled=self._measurements.caveat == COUPLED,
            news=self._pace.news,
            batch_size=self.batch_size,
            reference=reference_batch_size(self.base_batch_size),
            progress=self.progress,
            step_time=self.step_time,
            critical=self.critical,
            early_limit=early_limit(self.progress, self.base_batch_size, self._adaptive),
            floor=efficiency_floor(self.progress, self.run.required, self._adaptive),
            max_batch_size=self.max_batch_size,
        )
        decision = self._ranks.agree(decide(now, self._settings.target))
        decision = self.memory.within(decision, self.batch_size, self.delivery.longest)
        if decision.batch_size != self.batch_size:
            sizes = self.batch_size, decision.batch_size
            log.info("batch size %d -> %d (%s) at %.0f %%", *sizes, decision.reason, 100 * self.progress)
        self._measurements.say(self.noise_scale, self.progress)
        if not callable(self._settings.target):  # (how sure a function of the user's needs to be, nobody knows)
            self._time.duty.decided(decision, self.batch_size, self.noise_scale)
        self.batch_size = decision.batch_size
        self._pace.decided(self.run.worth)
        self._record("decision", decision.reason)
        self._calibrate()

    def ran_out_of_memory(self, fits: int) -> None:
        """The batch in hand did not fit, and has been run in pieces of so many samples, which is its size from here."""
        if not self.memory.may_be_exceeded:
            self.batch_size = min(self.batch_size, fits * self.parts)
        self._record("out of memory", "memory")

    def _calibrate(self) -> None:
        left = self.run.planned - self.run.worth if self._epochs else self.epoch_samples
        self._time.calibrate(self.delivery.in_hand.nominal, self.batch_size, left)

    @property
    def doubt(self) -> str | None:
        """Why the latest estimate is not to be believed as a number, if so."""
        return self._measurements.doubt(self.noise_scale)

    def _record(self, event: str, reason: str) -> None:
        self.history.add_estimate(
            self.noise_scale,
            self.views,
            event=event, reason=reason, doubt=self.doubt,
            samples=self.run.samples, progress=self.progress if self._epochs else None,
            batch_size=self.batch_size // self.parts, global_batch_size=self.batch_size,
            lr_factor=self._lr(self.batch_size, self.noise_scale),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything decisions depend on: numbers, strings and containers of them."""
        self._take_in(alone=True)
        state = {name: getattr(self, name) for name in _REMEMBERED}
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {
            **state, **parts,
            "noise_scale": astuple(self.noise_scale) if self.noise_scale else None,
            "views": {name: astuple(view) for name, view in self.views.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a run of the same shape; else a ValueError says what differs."""
        for name in ("start", "epoch_samples", "parts"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved run has {name}={state[name]}, this one {getattr(self, name)}: "
                    "build it with the same dataset, batch_size, accumulation_steps and drop_last"
                )
        for name in _REMEMBERED:
            setattr(self, name, state[name])
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.noise_scale = NoiseScale(*state["noise_scale"]) if state["noise_scale"] else None
        self.views = {name: NoiseScale(*view) for name, view in state["views"].items() if name in self.history.views}


_PARTS = ("run", "memory", "_time", "_measurements", "_pace", "delivery", "history")
_REMEMBERED = ("start", "epoch_samples", "parts", "batch_size")
