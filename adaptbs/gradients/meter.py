"""Choose how to measure squared norms for a model, per example or by halves, and measure them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from ..model import BatchLoss, batch_length, has_batch_norm, trainable
from ..timing import Moment, Stopwatch
from ..types import COUPLED, Measurement, SquaredNorms
from .coupling import Coupling
from .halves import HalfBatches
from .mean_gradient import MeanGradient
from .per_example import PerExample, Unsupported
from .views import View

log = logging.getLogger(__name__)

TRIALS = 4  # measurements by each source before one is chosen; the first of each is not timed
WORTH = 2  # measurements by halves that tell as much about |G|^2 as one per example: 1/(1 - b/B) at b = B/2
SHORT = 4  # samples; a shorter batch is skipped if longer ones have been seen
FEW = 32  # samples; BatchNorm over fewer changes the noise scale (docs/believing.md)


class Source(Protocol):
    """Measures the squared norms of a batch at the current weights, and restores all other state."""

    mean_gradient: MeanGradient

    def measure(self, batch: Any) -> SquaredNorms | None:
        """Squared norms, on the device and without waiting for it. None if the batch is too short."""
        ...


class NoiseMeter:
    """Measures squared norms of batches, by the chosen source or by the cheaper one.

    "auto" alternates between both sources for the first measurements. Then it measures per example if that takes less
    time than two measurements by halves, which tell as much, and by halves otherwise. If the model cannot be measured
    per example, it changes to halves at once.

    Args:
        model: the model.
        batch_loss: its loss on a batch.
        choice: "auto", "halves" or "per_example".
        views: views of the gradients to measure as well, by name. Only halves can measure them.
        timed: True if the clock may be read. If not, "auto" measures per example unless the model has convolutions,
            whose norms per example take two to four times as long (docs/measuring.md).
    """

    def __init__(
        self,
        model: nn.Module,
        batch_loss: BatchLoss,
        *,
        choice: str = "auto",
        views: Mapping[str, View] | None = None,
        timed: bool = True,
    ) -> None:
        self._model, self._choice, self._coupling = model, choice, Coupling(model, batch_loss)
        self._sources: dict[str, Source] = {
            "per example": PerExample(model, batch_loss),  # tried first, because a model may not allow it
            "halves": HalfBatches(model, batch_loss, views),
        }
        self._longest = 0  # rows
        self._trials: dict[str, list[tuple[Moment, Moment]]] = {name: [] for name in self._sources}
        self._stopwatch = Stopwatch(next(model.parameters()).device)
        self._picked, self._why = self._pick_at_once(views, timed)

    def choose_at_once(self) -> None:
        """If no source is chosen yet, choose one by the model alone, without timing."""
        if self._picked is None:
            self._picked, self._why = self._pick_at_once(None, timed=False)

    def measure(self, batch: Any, samples: int) -> Measurement | None:
        """Measure a batch. The norms stay on the device. None if the batch is too short or no parameter trains.

        Args:
            batch: nested tensors, with samples along their first dimension.
            samples: number of samples that the batch was made from.

        Raises:
            Unsupported: if `choice` is "per_example" and the model cannot be measured per example.
        """
        rows = batch_length(batch)
        self._longest = max(self._longest, rows)
        if not trainable(self._model):
            return None  # the whole model may be frozen for a while
        if rows < SHORT <= self._longest:
            return None  # the last few samples of an epoch; a model that never trains on one sample may fail on it
        self._coupling.look(batch)
        name = self._picked or self._pick_by_time() or min(self._trials, key=lambda name: len(self._trials[name]))
        begin, norms, failed = self._stopwatch.mark(), None, None
        try:
            norms = self._sources[name].measure(batch)
        except Exception as error:  # a single example, hooks or memory may fail where halves work
            if self._choice == "per_example" and isinstance(error, Unsupported):
                raise Unsupported(
                    f"source='per_example' cannot measure this model: {error}. Use source='auto'"
                ) from error
            if self._choice != "auto" or name == "halves":
                raise
            failed = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        if failed is not None:
            # Not in the except block, where the exception would keep the failed pass's memory alive.
            name = self._pick("halves", failed)
            norms = self._sources[name].measure(batch)
        if self._picked is None:
            self._trials[name].append((begin, self._stopwatch.mark()))
        if norms is None:
            return None
        return Measurement(norms, name, self._why, self._caveat(norms, rows, samples))

    def state_dict(self) -> dict[str, Any]:
        """The chosen source and facts about model and loss. A choice that is still open begins anew."""
        gradients = {name: source.mean_gradient.state_dict() for name, source in self._sources.items()}
        return {
            "picked": self._picked, "why": self._why, "longest": self._longest,
            "coupling": self._coupling.state_dict(), "gradients": gradients,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state. A `choice` other than "auto" takes precedence over the saved source."""
        if self._choice == "auto":
            self._picked, self._why = state["picked"], state["why"]
        self._longest = state["longest"]
        self._coupling.load_state_dict(state["coupling"])
        for name, source in self._sources.items():
            source.mean_gradient.load_state_dict(state["gradients"][name])

    def _pick_at_once(self, views: Mapping[str, View] | None, timed: bool) -> tuple[str | None, str]:
        if self._choice != "auto":
            return self._choice.replace("_", " "), "asked for"
        if views:
            return "halves", "views of the gradient are measured that way"
        if not timed:
            convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in self._model.modules())
            return ("halves", "it has convolutions") if convolutions else ("per example", "it has no convolutions")
        return None, "not chosen yet"

    def _pick_by_time(self) -> str | None:
        timed = {name: marks[1:] for name, marks in self._trials.items()}
        last = [spans[-1][1] for spans in timed.values() if len(spans) >= TRIALS - 1]
        if len(last) < len(timed) or not all(map(self._stopwatch.reached, last)):
            return None
        halves, example = (
            statistics.median(self._stopwatch.seconds(*span) for span in timed[name])
            for name in ("halves", "per example")
        )
        relative = f"one per example takes {example / halves:.1f} times as long as one by halves"
        return self._pick("per example" if example < WORTH * halves else "halves", relative)

    def _pick(self, name: str, why: str) -> str:
        self._picked, self._why = name, why
        log.info("the noise scale is measured %s: %s", "by halves" if name == "halves" else name, why)
        return name

    def _caveat(self, norms: SquaredNorms, rows: int, samples: int) -> str | None:
        if self._coupling.found:
            return COUPLED
        if rows != samples:
            return f"{rows} rows of {samples} samples"
        if norms.small_size < FEW and has_batch_norm(self._model):
            return f"BatchNorm over {norms.small_size}"
        return None
