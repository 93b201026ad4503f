"""More plots for fastai: the finder's, the schedule against samples, and one that is redrawn while training."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .columns import QuickCallback, begins_fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_bs_find(self: Any) -> Figure:
    """Plot the latest `learn.bs_find()`. Available as `learn.recorder.plot_bs_find()`."""
    if not hasattr(self, "bs_found"):
        raise RuntimeError("plot_bs_find() has nothing to plot yet: call learn.bs_find() first")
    figure: Figure = self.bs_found.plot()
    return figure


def plot_sched_by_samples(self: Any, keys: str | Iterable[str] | None = None) -> Figure:
    """Plot the hyperparameters used, as `learn.recorder.plot_sched()` does, but against samples instead of steps.

    Args:
        self: the Recorder of a Learner that was fitted with a schedule and with AdaptiveBatchSize.
        keys: the name of a hyperparameter to plot, or several. None: all that were scheduled.

    Raises:
        RuntimeError: the latest fit has not recorded a schedule and samples.
        ValueError: a name in `keys` was not scheduled.
    """
    # A Recorder passes what it does not have on to the Learner's model, which may have attributes of these names.
    recorded = vars(self)
    samples, used = recorded.get("samples", []), recorded.get("hps", {})
    if used is recorded.get("hps_before"):  # of an earlier fit
        used = {}
    names = [keys] if isinstance(keys, str) else list(used if keys is None else keys)
    if not names or not samples or any(len(values) != len(samples) for values in used.values()):
        raise RuntimeError(
            "plot_sched_by_samples() has nothing to plot: fit with a schedule (fit_one_cycle) and AdaptiveBatchSize "
            "first. It shows the latest fit, which must have had both, and must not have been interrupted"
        )
    if unknown := set(names) - set(used):
        raise ValueError(f"keys: {', '.join(sorted(unknown))} was not scheduled. Give names among {', '.join(used)}")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4), squeeze=False, layout="constrained")
    for name, panel in zip(names, axes[0], strict=True):
        panel.plot(samples, used[name])
        panel.set_ylabel(name)
        panel.set_xlabel("samples seen")
    return figure


class ShowBatchSizeCallback(QuickCallback):
    """Shows `learn.adaptive_batch_size.plot()` in a notebook during training, and redraws it after each epoch."""

    order, run_valid = 65, False

    def before_fit(self) -> None:
        if not begins_fit(self.learn):
            self.sit_out()
            return
        self._shown = None
        if not hasattr(self.learn, "adaptive_batch_size"):
            raise ValueError("ShowBatchSizeCallback has nothing to show: give cbs=[AdaptiveBatchSize(), ...] with it")
        try:
            self._display: Any = import_module("IPython.display").display
        except ImportError as error:
            message = "ShowBatchSizeCallback needs a notebook, but there is no IPython: leave it out"
            raise ImportError(message) from error

    def after_epoch(self) -> None:
        from matplotlib import pyplot as plt

        figure = self.learn.adaptive_batch_size.plot()
        if self._shown is None:
            self._shown = self._display(figure, display_id=True)
        else:
            self._shown.update(figure)
        plt.close(figure)  # otherwise the notebook shows it once more at the end of the cell
