"""The report of a run to its user, the same in every face."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..report import History, RunSummary, TradeOff, in_words, plot_history, summary_of_run, trade_off_of_run
from ..types import NoiseScale
from .controller import Controller
from .training_run import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Of a run whose first batch is the largest that it may have by default.
NO_ROOM = (
    "The batch had no room to grow: without `max_batch_size=` a step has at most an eighth of the {:,} samples of a "
    "pass, or the first batch where that is more."
)
#: Of a group that is not measured.
OUTSIDE = NoiseScale(0.0, 0.0, 0.0, math.inf, 0.0, 0, caveat="no parameter of the model")


class RunReport:
    """The properties and methods that tell of the latest run. Before the first one there is nothing to tell."""

    @property
    def training_run(self) -> TrainingRun | None:
        """The latest run, for tools that look inside or simulate; None before the first."""
        raise NotImplementedError

    @property
    def _controller(self) -> Controller | None:
        return self.training_run.controller if self.training_run else None

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The latest estimate; None before the first. Its doubt is also why the batch is held, if it is."""
        run = self._controller
        found = run.noise_scale if run else None
        return replace(found, caveat=run.holds.reason) if run and found and run.holds.reason else found

    @property
    def views(self) -> dict[str, NoiseScale]:
        """The noise scales beside the plain one: "adam" (`metric="adam"`), "group 0", ... (`by_group=True`).

        A group without a parameter of the model, as that of a loss with weights of its own, is not measured. It is here
        with that as its doubt.
        """
        run = self.training_run
        if run is None or not run.controller.views:
            return {}
        meter = run.measuring.meter
        return {**run.controller.views, **{name: OUTSIDE for name in (meter.outside if meter else [])}}

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """The sizes that the batches of a compiled model may have, samples, to compile them beforehand (docs/gpu.md).

        They are the size that the run starts with times powers of two. None: a batch may have any size, as that of a
        model that is not compiled. At the end of a pass there may be a shorter one, unless `drop_last` is given.
        """
        run = self.training_run
        sizes = run.few_sizes if run is not None else ()
        return tuple(size // run.controller.batches_per_step for size in sizes) if run and sizes else None

    @property
    def progress(self) -> float | None:
        """Share of the run done, 0..1, the current batch included; None where its length is not known."""
        known = self._controller is not None and self._controller.progress_tracker.epochs is not None
        return self._controller.progress if known and self._controller else None

    @property
    def history(self) -> History:
        """One record per decision and per measurement."""
        return self._controller.history if self._controller else History()

    def trade_off(self, base: int | None = None) -> TradeOff:
        """Steps, samples and time on this device that fixed batch sizes would have taken for the progress so far.

        Args:
            base: the size that all is relative to, samples of an optimizer step. None: the size that the run began
                with.

        Raises:
            RuntimeError: where no noise scale has been measured yet.
        """
        run = self._controller
        step_time, largest, critical = (run.step_time, run.epoch_samples, run.rules.critical) if run else (None, 0, 1.0)
        decisions = self.history.decisions()
        return trade_off_of_run(decisions, step_time, base=base, largest=largest, critical_over_simple=critical)

    def summary(self) -> RunSummary:
        """Table of the changes of the batch size, with the reasons and the time saved by the run's own step times.

        Raises:
            RuntimeError: before the first run.
        """
        run = self._controller
        if run is None:
            raise RuntimeError("summary(): there has been no run yet, so there is nothing to sum up: train first")
        progress, decisions = run.progress_tracker, run.history.decisions()
        measured = any(low is not None for low in decisions["low"][1:])
        return summary_of_run(
            decisions, samples=progress.samples, planned_samples=progress.effective_samples,
            step_time=run.step_time, spent=run.overhead_spent, trade_off=self.trade_off() if measured else None,
            notes=(*_at_the_limit(run), *self._notes),
        )  # fmt: skip

    @property
    def _notes(self) -> tuple[str, ...]:
        """Sentences on what else would save time, for the end of the summary."""
        return ()

    def __repr__(self) -> str:
        # It may be asked for while an object is half made, as by a debugger.
        run = getattr(self, "training_run", None)
        history = getattr(run.controller, "history", None) if run else None
        if run is None or history is None:
            return f"{type(self).__name__}(no run yet)"
        return f"{type(self).__name__}({'; '.join(_state(run.controller, run.settings.measures))})"

    def plot(self) -> Figure:
        """Noise scale with its band, batch size and learning rate factor, against samples."""
        decisions, views, run = self.history.decisions(), self.history.view_columns, self.training_run
        if run is None:
            return plot_history(decisions, views)
        return plot_history(
            decisions, views, confidence=run.settings.confidence, critical=run.controller.rules.critical,
            pass_samples=run.controller.epoch_samples,
        )  # fmt: skip


def _at_the_limit(run: Controller) -> tuple[str, ...]:
    return (NO_ROOM.format(run.epoch_samples),) if run.rules.has_no_room else ()


def _state(run: Controller, measures: bool) -> Iterator[str]:
    """The state of a run, in words. Reads neither device nor clock.

    Args:
        measures: False where measuring is switched off.
    """
    size = run.batch_size // run.batches_per_step
    yield f"batch size {size:,}" + (f", {run.batch_size:,} a step" if run.batches_per_step > 1 else "")
    if measures:
        yield f"noise scale {run.noise_scale or 'not known yet'}"
    if measures or not run.rules.needs_noise_scale:
        yield in_words(run.holds.reason or run.history.decisions()["reason"][-1])
    if run.progress_tracker.epochs:
        yield f"{100 * run.progress:.0f} % of the run done"
    share = run.overhead_spent.share
    if not measures:
        yield "nothing is measured (overhead=0)"
    elif share is None:
        yield "overhead not timed yet"
    else:
        yield f"overhead so far {100 * share:.1f} %" if share >= 0 else "overhead too small to tell"
