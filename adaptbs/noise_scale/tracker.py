"""The measurements of a run: the noise scale and its other views, and what there is to say against them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..types import COUPLED, Measurement, NoiseScale, SquaredNorms
from .window import MeasurementWindow

log = logging.getLogger(__name__)


class NoiseScaleTracker:
    """Keeps one window for the plain noise scale and one for each view.

    Args:
        run_samples: length of the run, samples.
        views: names of the views that may be measured.
    """

    def __init__(self, run_samples: int, views: Sequence[str] = ()) -> None:
        self._run_samples, self._names = run_samples, tuple(views)
        self._spoken: str | None = None  # the doubt that the log knows of
        self.forget()

    def forget(self) -> None:
        """Know nothing."""
        self._plain = MeasurementWindow(self._run_samples)
        self._views = {name: MeasurementWindow(self._run_samples, warns=False) for name in self._names}
        self._unread: dict[int, tuple[float | None, Measurement]] = {}  # by the samples seen
        self.caveat: str | None = None  # of the latest measurement

    def add(self, samples: int, made: Measurement, progress: float | None = None) -> None:
        """Put in a measurement made when `samples` samples had been seen; nothing is read from the device."""
        self._unread[samples] = progress, made
        self._plain.add(samples, replace(made.norms, views={}))
        for name, norms in made.norms.views.items():
            self._views[name].add(samples, norms)

    def read(self) -> list[tuple[int, float | None, Measurement, SquaredNorms | None]]:
        """Those added since the last read: samples, progress, measurement, its norms as floats; None if not finite."""
        finite = dict(self._plain.read())
        read = [(samples, progress, made, finite.get(samples)) for samples, (progress, made) in self._unread.items()]
        if read and self.caveat != COUPLED:  # (what the loss is once it remains, also when a run is resumed)
            self.caveat = read[-1][2].caveat
        self._unread = {}
        return read

    def doubt(self, estimate: NoiseScale | None) -> str | None:
        """Why this estimate is not to be believed as a number, if so."""
        if self.caveat:
            return self.caveat
        if estimate is not None:
            return estimate.doubt
        return "non-finite steps" if self._plain.skipped else "no measurements"

    def say(self, estimate: NoiseScale | None, progress: float) -> None:
        """Log that doubt has come or gone, at this share of the run."""
        doubt = self.doubt(estimate)
        if doubt != self._spoken:
            self._spoken = doubt
            state = f"not to be believed as a number ({doubt})" if doubt else "in no doubt"
            log.info("the noise scale is %s at %.0f %%", state, 100 * progress)

    def estimate(self, confidence: float) -> NoiseScale | None:
        """The noise scale as of the latest measurement; None where there is none."""
        return self._plain.estimate(confidence)

    def estimate_views(self, confidence: float) -> dict[str, NoiseScale]:
        """Those of the views that have been measured."""
        found = {name: window.estimate(confidence) for name, window in self._views.items()}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def state_dict(self) -> dict[str, Any]:
        """Call `read` before: what is unread is not kept."""
        views = {name: window.state_dict() for name, window in self._views.items()}
        return {"plain": self._plain.state_dict(), "views": views, "caveat": self.caveat}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a view that only one of the two runs measures begins anew."""
        self.forget()
        self._plain.load_state_dict(state["plain"])
        for name in self._views.keys() & state["views"].keys():
            self._views[name].load_state_dict(state["views"][name])
        self.caveat = state["caveat"]
