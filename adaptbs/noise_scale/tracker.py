"""Pool a run's measurements into the noise scale and those of its views, and name reasons to doubt them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

from ..types import COUPLED, ENOUGH, NOT_FINITE, NOTHING, Measurement, NoiseScale, SquaredNorms
from .window import MeasurementWindow

log = logging.getLogger(__name__)


class NoiseScaleTracker:
    """Keeps one window of measurements for the plain noise scale, and one for each view.

    Args:
        run_samples: length of the run, samples.
        views: names of the views that may be measured.
        prior: a noise scale known before the run. It is the estimate until there are `ENOUGH` measurements.

    Attributes:
        caveat: that of the latest measurement.
        resolved: the estimate that learning rates are set by: the latest one that resolves the noise scale. The first
            one where none has; None before it.
    """

    def __init__(self, run_samples: int, views: Sequence[str] = (), prior: NoiseScale | None = None) -> None:
        self._run_samples, self._names = run_samples, tuple(views)
        self._spoken: str | None = None  # the doubt logged last
        self.forget()
        self._prior: NoiseScale | None = prior

    def plan(self, run_samples: int) -> None:
        """Change the length of the run, samples."""
        self._run_samples = run_samples
        for window in (self._plain, *self._views.values()):
            window.plan(run_samples)

    def forget(self) -> None:
        """Drop all measurements and the prior."""
        self._prior = None
        self._plain = MeasurementWindow(self._run_samples)
        self._views = {name: MeasurementWindow(self._run_samples, warns=False) for name in self._names}
        self._unread: dict[int, tuple[float | None, Measurement]] = {}  # by samples seen: progress, measurement
        self.caveat: str | None = None
        self.resolved: NoiseScale | None = None

    def add(self, samples: int, made: Measurement, progress: float | None = None) -> None:
        """Add a measurement made when `samples` samples had been seen. Reads nothing from the device."""
        self._unread[samples] = progress, made
        self._plain.add(samples, replace(made.norms, views={}))
        for name, norms in made.norms.views.items():
            self._views[name].add(samples, norms)

    def read(self) -> list[tuple[int, float | None, Measurement, SquaredNorms | None]]:
        """Read the measurements added since the last read.

        Returns:
            For each its samples, progress, the measurement, and its norms as floats, or None if they are not finite.
        """
        unread, self._unread = self._unread, {}
        before = self.caveat
        if unread and self.caveat != COUPLED:  # a loss that couples samples keeps doing so, even in a resumed run
            *_, (_, latest) = unread.values()
            self.caveat = latest.read_caveat()
        # A doubt that is found together with norms that are not finite is the reason for them.
        finite = dict(self._plain.read(warns=self.caveat in (None, before)))
        return [(samples, progress, made, finite.get(samples)) for samples, (progress, made) in unread.items()]

    def go_by(self, estimate: NoiseScale | None) -> None:
        """Set `resolved` from the estimate of a decision, if that resolves the noise scale. None: nothing is known."""
        if estimate is None or estimate.believed or self.resolved is None:
            self.resolved = estimate

    def doubt(self, estimate: NoiseScale | None) -> str | None:
        """Reason not to trust the estimate as a number; None if there is none."""
        if self.caveat:
            return self.caveat
        if estimate is not None:
            return estimate.doubt
        return NOT_FINITE if self._plain.skipped else NOTHING

    def say(self, estimate: NoiseScale | None, progress: float) -> None:
        """Log when a doubt appears or goes. `progress` is the share of the run done, 0..1."""
        doubt = self.doubt(estimate)
        if doubt != self._spoken:
            self._spoken = doubt
            state = f"not reliable as a number ({doubt})" if doubt else "reliable"
            log.info("the noise scale is %s at %.0f %% of the run", state, 100 * progress)

    def estimate(self, confidence: float) -> NoiseScale | None:
        """Estimate the noise scale from all measurements so far. None if there is neither a measurement nor a prior."""
        found = self._plain.estimate(confidence)
        if self._prior is not None and (found is None or found.measurements < ENOUGH):
            found = self._prior
        return replace(found, caveat=self.caveat) if found is not None and self.caveat else found

    def estimate_views(self, confidence: float) -> dict[str, NoiseScale]:
        """Estimate the noise scales of the views, by name. Leaves out views without a measurement."""
        found = {name: window.estimate(confidence) for name, window in self._views.items()}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    def state_dict(self) -> dict[str, Any]:
        """State for `load_state_dict`. Call `read` first, since unread measurements are not kept."""
        views = {name: window.state_dict() for name, window in self._views.items()}
        has_prior = self._prior is not None
        return {
            "plain": self._plain.state_dict(), "views": views, "caveat": self.caveat, "has_prior": has_prior,
            "resolved": astuple(self.resolved) if self.resolved else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. A view that only one of the two runs measures starts empty."""
        prior = self._prior
        self.forget()
        self._prior = prior if state["has_prior"] else None  # the saved run may have dropped it
        self._plain.load_state_dict(state["plain"])
        for name in self._views.keys() & state["views"].keys():
            self._views[name].load_state_dict(state["views"][name])
        self.caveat = state["caveat"]
        self.resolved = NoiseScale(*state["resolved"]) if state["resolved"] else None
