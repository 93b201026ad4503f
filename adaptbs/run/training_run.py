"""One training run: what loader, callback and adapters do around their batches, whatever loop they are in."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ..gradients import HALVES, IN_STEP, NoiseMeter, views_of, why_loss_is_needed
from ..hyperparameters import HyperparameterScaler
from ..memory import Measures, MemoryLimit, MemoryTrial, memory_of
from ..model import BatchLoss, CachedFact, has_compiled
from ..ranks import ALONE, Ranks
from ..sampling import BatchInfo
from ..timing import PER_STEP, Clock
from ..types import Scale
from .batches_left import batches_left
from .controller import Controller
from .look_ahead import LookAhead, NoLookAhead
from .measuring import StepMeasuring
from .pass_size import FollowPassSize
from .rules import check_shape
from .settings import Settings
from .sums import SumCheck
from .tracker import BatchTracker, EpochEvents
from .trial_step import TrialStep
from .version import VERSION, check_version

log = logging.getLogger(__name__)
T = TypeVar("T")

UNKNOWN = "optimizer not known"  # reason to hold the batch
ANOTHER_PASS = (
    "epoch %d takes more than one pass over the data: samples of larger batches bring less, so it is given more of "
    'them. It stays one epoch of those asked for. budget="epochs" makes every epoch one pass.'
)


class TrainingRun:
    """Controller, tracker, meter, memory trial and hyperparameters of a run, and its state.

    A face (loader, callback, a trainer's adapter) only translates its framework's events:

        run = TrainingRun(settings, model, optimizer, batch_size=64, epoch_samples=50_000, adaptive=True, loss=loss)
        run.start(epochs)                                        # once length and device are known
        run.follow(scaler)                                       # hyperparameters, at `run.scale()`
        for batch in run.deliver(batches, queue, next_pass=...): # batches cut at `run.batch_size`
            run.before_batch(batch)                              # begins to measure, if it is this step's turn
            ...                                                  # the user's forward and backward pass
            if run.measuring.watches:
                run.measuring.before_step()                      # gradients are ready
            ...                                                  # the optimizer's step

    Args:
        settings: the user's arguments.
        model: the model being trained.
        optimizer: torch's or fastai's, for the views that `metric=` and `by_group=` ask for, and its parameters.
        batch_size: samples of the first batches.
        epoch_samples: samples of an epoch.
        adaptive: True if the optimizer divides by the gradient's size.
        loss: the loss of a batch, to measure by halves; None if it is not known.
        parameters: returns the parameters that the optimizer steps. None: all that are trainable.
        trial: the step by which larger batches are tried for memory; None where none can be tried.
        batches_per_step: batches that make up an optimizer step, of all ranks together.
        micro_batch_size: the most samples that go through the model at once, where larger batches are accumulated.
        ranks: the ranks that decide alike. If they are connected they measure together, and nothing is measured here.
        on_schedule_moved: called with the schedule's position before and after each batch.
        per_step: seconds that the face takes at every step, measured or not.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        optimizer: Any,
        *,
        batch_size: int,
        epoch_samples: int,
        adaptive: bool,
        loss: BatchLoss | None = None,
        parameters: Callable[[], Sequence[nn.Parameter]] | None = None,
        trial: TrialStep | None = None,
        batches_per_step: int = 1,
        micro_batch_size: int | None = None,
        ranks: Ranks = ALONE,
        on_schedule_moved: Callable[[float, float], None] | None = None,
        per_step: float = PER_STEP,
    ) -> None:
        views = views_of(optimizer, metric=settings.metric, by_group=settings.by_group)
        measures, source = settings.measures and not ranks.connected, IN_STEP
        if measures:
            stepped = parameters() if parameters is not None else ()
            why = why_loss_is_needed(model, stepped, choice=settings.source, views=bool(views))
            if why is not None and settings.source == "in_step":
                raise ValueError(f"source='in_step' cannot measure this model: {why}. Leave source= at 'auto'")
            source = HALVES if why is not None else IN_STEP
        self.controller = Controller(
            settings, batch_size=batch_size, epoch_samples=epoch_samples, adaptive=adaptive,
            views=tuple(views), batches_per_step=batches_per_step, ranks=ranks, source=source, per_step=per_step,
        )  # fmt: skip
        self.model, self.settings, self._ranks, self._optimizer = model, settings, ranks, optimizer
        self._is_compiled, self._on_schedule_moved = CachedFact(model, partial(has_compiled, model)), on_schedule_moved
        self._trial, self._micro_batch_size = trial, micro_batch_size
        meter = partial(NoiseMeter, model, loss, choice=settings.source, views=views, parameters=parameters)
        self._meter: NoiseMeter | None = meter() if measures else None
        self._measured_by: Measures | None = None  # in place of the meter
        self._at, self._step_ended = -1, True  # samples at the latest batch, and whether it ends an optimizer step
        self._scaler: HyperparameterScaler | None = None
        self._sums = SumCheck(
            self.controller, adaptive=adaptive, reduction=loss.reduction if loss is not None else None,
            stated=settings.transfer is not None or callable(settings.lr_scaling),
        )  # fmt: skip
        follows = "betas" in settings.following
        self._on_cut_size = FollowPassSize(model, self.controller, micro_batch_size) if follows else None
        self._batch: Any = None  # the latest, to try larger ones by
        self._added_a_pass = False

    def start(self, epochs: float | None) -> None:
        """Begin a run on the device where the model lies now. `epochs` is its length; None if that is not known."""
        self.controller.start(epochs, self.model_device, self._memory_limit())
        self._at, self._step_ended = -1, True
        self.tracker = BatchTracker(
            self.controller.progress_tracker,
            self.controller.start_batch_size,
            sample_efficiencies=self.controller.sample_efficiencies,
            on_step_end=self.controller.step_ended,
            on_schedule_moved=self._on_schedule_moved,
            on_cut_size=self._on_cut_size,
        )
        self.measuring = StepMeasuring(self._meter, self.controller, self.tracker, self._sums, self._ranks.world_size)

    def _memory_limit(self) -> MemoryLimit:
        """The limit of the memory of the devices where the model lies now."""
        memory = memory_of({p.device for p in self.model.parameters()}, self._ranks.world_size)
        batches_per_step = self.controller.batches_per_step
        trial: MemoryTrial | None = None
        if self._trial is not None and memory is not None:
            this = weakref.proxy(self)  # `self` would make a cycle, which keeps the model until a garbage collection
            trial = MemoryTrial(
                self._trial.model, self._trial.loss, memory, lambda: this._batch,
                measures=lambda: this._measured_by or this._meter, optimizer=self._optimizer,
                accumulates=batches_per_step > self._ranks.world_size,
            )  # fmt: skip
        return MemoryLimit(
            None if self.settings.step_time else memory, self.settings.exceed_memory,
            batches_per_step, self._ranks, trial, self._micro_batch_size,
        )  # fmt: skip

    def use_clock(self, clock: Clock) -> None:
        """Time the run by another clock, for simulations; call it before the run begins."""
        self.controller.use_clock(clock)

    def count_memory_of(self, measures: Measures) -> None:
        """Let trials of larger batches count what this holds, which measures in place of the run's own meter."""
        self._measured_by = measures

    def follow(self, scaler: HyperparameterScaler) -> None:
        """Count progress by its learning rates, and keep what the optimizer's averages have accumulated in the state.

        Where it is not known what the optimizer does, batch and hyperparameters are held, unless the user has said what
        follows the batch.
        """
        self._scaler = scaler
        self.controller.sample_efficiencies.follow(scaler)
        if not (scaler.known or self.settings.says_what_follows or self.controller.rules.changes_nothing):
            scaler.hold(self.controller.holds.warn)
            self.controller.hold(UNKNOWN)

    @property
    def model_device(self) -> Any:
        """The device where the model lies now, by its first parameter."""
        return next(self.model.parameters()).device

    @property
    def few_sizes(self) -> tuple[int, ...]:
        """The sizes that a step on a compiled model may have, samples; empty where it may have any."""
        return self.controller.rules.few_sizes if not self._micro_batch_size and self._is_compiled() else ()

    @property
    def has_begun(self) -> bool:
        """True once a sample has been delivered."""
        return self.controller.progress_tracker.samples > 0

    @property
    def is_over(self) -> bool:
        """True once a run that ends by its progress has come to its end, its last batch included."""
        return self.controller.progress_tracker.complete and not self.tracker.under_way

    def batches_left(self, in_pass: tuple[int, int], per_step: int = 1) -> int:
        """Batches still to come in this epoch, at the size of now.

        Args:
            in_pass: batches that are left of the pass under way, and their samples.
            per_step: batches of an optimizer step, on each rank.
        """
        return batches_left(self.controller, in_pass, per_step, ends_step=self.tracker.current.ends_step)

    def scale(self) -> Scale:
        """Factors of the hyperparameters for the current batch, by the size that it was cut at.

        So a pass's short last batch keeps its step.
        """
        return self.controller.scales[self.tracker.current.cut_size]

    def deliver(
        self,
        batches: Iterable[T],
        queue: deque[BatchInfo],
        look_ahead: LookAhead | None = None,
        events: EpochEvents | None = None,
        is_new: Callable[[T], bool] | None = None,
        next_pass: Callable[[], Iterable[T]] | None = None,
    ) -> Iterator[T]:
        """Pass an epoch's batches on, keep count, and decide between them; see `BatchTracker.deliver`."""
        self.controller.rules.keep_to(self.few_sizes)
        self.controller.start_clock()
        another = partial(self._another_pass, next_pass) if next_pass is not None else None
        return self.tracker.deliver(batches, queue, look_ahead or NoLookAhead(), events, is_new, another)

    def _another_pass(self, next_pass: Callable[[], Iterable[T]]) -> Iterable[T]:
        """Begin another pass within the epoch, and say so the first time."""
        if not self._added_a_pass and self._ranks.rank == 0:
            log.info(ANOTHER_PASS, self.controller.progress_tracker.epoch)
        self._added_a_pass = True
        batches = next_pass()  # begins workers, in time that is no step's
        self.controller.start_clock()
        return batches

    @property
    def goes_on(self) -> bool:
        """True where an epoch ends, or has ended, within a pass that the next epoch goes on with."""
        progress = self.controller.progress_tracker
        return progress.epoch_complete and not progress.complete and self.tracker.current.ends_step

    def before_batch(self, batch: Any) -> None:
        """Keep the batch just fetched for trials, and begin to measure if it is this step's turn.

        Raises:
            LossNotScalarError: if the loss that was given returns something other than one number.
        """
        self._batch = batch
        if self.controller.holds.gathers:
            self.controller.holds.count_batch()
        samples = self.controller.progress_tracker.samples
        if samples == self._at:
            return  # the loop looks ahead, and works on the same batch as before
        begins, self._at, self._step_ended = self._step_ended, samples, self.tracker.current.ends_step
        if self.measuring.watches:
            self.measuring.go_on()
        elif begins and self.measuring.meter is not None and self.controller.measure_next_step():
            self.measuring.begin(batch)

    def after_epoch(self) -> None:
        """Keep no batch any more, watch no step, and say what was in doubt."""
        self._batch = None
        self.measuring.stop()
        self.controller.holds.say()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as far as the run knows it."""
        return {
            "version": VERSION,
            "controller": self.controller.state_dict(),
            "tracker": self.tracker.state_dict(),
            "meter": self.measuring.meter.state_dict() if self.measuring.meter is not None else None,
            "hyperparameters": self._scaler.state_dict() if self._scaler is not None else None,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError, saying what differs, unless the state is of this version and of a run of the same shape."""
        check_version(state)
        check_shape(state["controller"], self.controller)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a run of the same shape; else a ValueError says what differs."""
        self.check_state(state)
        self.controller.load_state_dict(state["controller"])
        if not self.controller.rules.holds:  # this run has been told what follows the batch
            self.controller.holds.remove(UNKNOWN)
        self._sums.go_on(state["controller"]["holds"])
        self.tracker.load_state_dict(state["tracker"])
        self._at, self._step_ended = -1, self.tracker.current.ends_step
        if self._meter is not None and state["meter"] is not None:
            self._meter.load_state_dict(state["meter"])
        if self._scaler is not None and state["hyperparameters"] is not None:
            self._scaler.load_state_dict(state["hyperparameters"])
