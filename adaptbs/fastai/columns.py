"""Adds batch size, noise scale and samples of each epoch as columns to a Learner's printed table and its logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fastai.callback.core import Callback, _events, _inner_loop

NAMES = ("bs", "noise_scale", "samples")
OF_A_BATCH = frozenset(_inner_loop)  # events of a batch, which occur in training and in validation


class QuickCallback(Callback):
    """A callback whose events of a batch take little time.

    fastai's own Callback looks for attributes in the Learner and its model at each of the ten events of every step,
    which takes as long as a small layer.
    """

    _methods: Mapping[str, Callable[[Any], Any]] = {}  # of the events that have one
    _sits_out = False  # True if it was `sit_out` that has set `run`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._methods = {name: getattr(cls, name) for name in _events if hasattr(cls, name)}

    def __call__(self, event_name: str) -> Any:
        """Handle an event, or do nothing if there is no method for it."""
        if event_name == "before_fit" and self._sits_out:  # Ctrl-C has ended the fit before, which had no after_fit
            self.run, self._sits_out = True, False
        if event_name == "after_fit":  # where fastai sets `run` again
            self._sits_out = False
        elif event_name not in self._methods:
            return None
        if event_name not in OF_A_BATCH:
            return super().__call__(event_name)
        runs = self.run_train if self.learn.training else self.run_valid
        return self._methods[event_name](self) if self.run and runs else None

    def sit_out(self) -> None:
        """Handle no event until this fit, mock fit or validation is over."""
        self.run, self._sits_out = False, True


class Columns(QuickCallback):
    """Adds the columns `bs`, `noise_scale` and `samples` between the metrics and the time.

    Args:
        source: an object with `batch_size`, `noise_scale` and `training_run`.
    """

    order = 51  # after the Recorder has named its columns, and before other callbacks read them

    def __init__(self, source: Any) -> None:
        self._source, self._adds = source, False

    def before_fit(self) -> None:
        self._adds = begins_fit(self.learn) and hasattr(self.learn, "recorder")
        if self._adds:
            names = self.learn.recorder.metric_names
            end = len(names) - bool(self.learn.recorder.add_time)
            self.learn.recorder.metric_names = names[:end] + list(NAMES) + names[end:]
            # For `plot_sched_by_samples`: samples seen up to each step, and the schedule that was recorded before.
            self.learn.recorder.samples = []
            self.learn.recorder.hps_before = vars(self.learn.recorder).get("hps")

    def after_batch(self) -> None:
        learn, run = self.learn, self._source.training_run
        if self._adds and learn.training and run is not None:
            seen = learn.recorder.samples
            seen.append(run.tracker.current.num_samples + (seen[-1] if seen else 0))

    def after_validate(self) -> None:
        # If an epoch or its validation was cancelled, the metrics before our columns are missing, and our values would
        # be shown in their place.
        recorder = self.learn.recorder if self._adds and hasattr(self.learn, "recorder") else None
        if recorder and len(recorder.log) == len(recorder.metric_names) - len(NAMES) - bool(recorder.add_time):
            estimate = self._source.noise_scale
            simple = estimate.simple if estimate is not None else None
            shown = Shown(math.nan if simple is None else simple)
            run = self._source.training_run
            recorder.log += [self._source.batch_size, shown, run.tracker.epoch_samples if run is not None else 0]


class Shown(float):
    """A number to three significant digits for fastai's table, which formats a float with six decimals.

    nan is shown as "not known". It stays a number, because loggers such as TensorBoard's take no other value.
    """

    def __new__(cls, value: float) -> Shown:
        return super().__new__(cls, f"{value:.3g}")

    def __format__(self, spec: str) -> str:
        return "not known" if math.isnan(self) else f"{float(self):g}" if abs(self) < 100 else f"{float(self):.0f}"

    def __repr__(self) -> str:
        return format(self)

    def __str__(self) -> str:
        return "nan" if math.isnan(self) else format(self)  # fastai's CSVLogger writes it

    def __reduce__(self) -> Any:
        return float, (float(self),)  # so that an exported Learner can be read without adaptbs


def begins_fit(learn: Any) -> bool:
    """True if this `before_fit` begins a real fit.

    `lr_find` runs a mock fit, and validation calls `before_fit` too. A fit of no epochs, as
    `fine_tune(5, freeze_epochs=0)` makes, does not count either.
    """
    if hasattr(learn, "lr_finder") or learn.lock.locked():  # validation holds the lock
        return False
    return bool(learn.n_epoch > 0)
