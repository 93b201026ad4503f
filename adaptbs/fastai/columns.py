"""Batch size and noise scale as columns of the table that a Learner prints, and of what it logs."""

from __future__ import annotations

import math
from typing import Any

from fastai.callback.core import Callback
from fastai.torch_core import find_bs

NAMES = ("bs", "noise_scale")


class QuickCallback(Callback):
    """fastai's own takes long to find out that there is nothing to do, at each of eight events of every step."""

    def __call__(self, event_name: str) -> Any:
        """Handle an event; nothing where there is no method for it."""
        return super().__call__(event_name) if hasattr(type(self), event_name) else None


class Columns(QuickCallback):
    """Adds them between the metrics and the time: for ProgressCallback, CSVLogger, TensorBoard and the like.

    Args:
        source: has `batch_size` and `noise_scale`.
    """

    order = 51  # after the Recorder has named its columns, before anybody reads them

    def __init__(self, source: Any) -> None:
        self._source, self._adds = source, False

    def before_fit(self) -> None:
        self._adds = begins_fit(self.learn) and hasattr(self.learn, "recorder")
        if self._adds:
            names = self.learn.recorder.metric_names
            end = len(names) - bool(self.learn.recorder.add_time)
            self.learn.recorder.metric_names = names[:end] + list(NAMES) + names[end:]
            self.learn.recorder.samples = []  # seen up to each step, for pictures
            self._seen = 0

    def after_batch(self) -> None:
        learn = self.learn
        if self._adds and learn.training:
            self._seen += find_bs(learn.xb)
            learn.recorder.samples.append(self._seen)

    def after_validate(self) -> None:
        # (Where an epoch or its validation was cancelled, metrics before ours are missing: ours would pass for them.)
        recorder = self.learn.recorder if self._adds else None
        if recorder and len(recorder.log) == len(recorder.metric_names) - len(NAMES) - bool(recorder.add_time):
            estimate = self._source.noise_scale
            simple = estimate.simple if estimate is not None else None
            shown = math.nan if simple is None else float(f"{simple:.3g}")
            recorder.log += [self._source.batch_size, shown]


def begins_fit(learn: Any) -> bool:
    """Whether this `before_fit` is a fit's: `lr_find` is a mock one, and validation says it, too.

    One of no epochs, as `fine_tune(5, freeze_epochs=0)` makes, is none either.
    """
    if hasattr(learn, "lr_finder") or learn.lock.locked():  # (which validation holds)
        return False
    return bool(learn.n_epoch > 0)
