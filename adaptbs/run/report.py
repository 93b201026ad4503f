"""What a run tells its user: the same of a loader and of a callback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report import History, TradeOff, trade_off_of_run
from ..types import NoiseScale
from .controller import Controller

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunReport:
    """Reads the latest run's controller; before the first run there is nothing to tell."""

    _controller: Controller | None

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The latest estimate; None before the first."""
        return self._controller.noise_scale if self._controller else None

    @property
    def views(self) -> dict[str, NoiseScale]:
        """The noise scales beside the plain one: "adam" (`metric="adam"`), "group 0", ... (`by_group=True`)."""
        return self._controller.views if self._controller else {}

    @property
    def progress(self) -> float | None:
        """Share of the run done, 0..1, the batch in the loop's hands included; None where its length is not known."""
        known = self._controller is not None and self._controller.run.epochs is not None
        return self._controller.progress if known and self._controller else None

    @property
    def history(self) -> History:
        """One record per decision and per measurement."""
        return self._controller.history if self._controller else History()

    def trade_off(self, base: int | None = None) -> TradeOff:
        """What fixed batch sizes would have taken for the progress made so far: steps, samples, time on this device.

        Args:
            base: the size that all is relative to, samples; the one the run began with where None.

        Raises:
            RuntimeError: where no noise scale has been measured yet.
        """
        run = self._controller
        step_time, largest, critical = (run.step_time, run.epoch_samples, run.critical) if run else (None, 0, 1.0)
        decisions = self.history.decisions()
        return trade_off_of_run(decisions, step_time, base=base, largest=largest, critical_over_simple=critical)

    def plot(self) -> Figure:
        """Noise scale with its band, batch size and learning rate factor, against samples."""
        from ..report import plot_history

        return plot_history(self.history.decisions(), self.history.view_columns)
