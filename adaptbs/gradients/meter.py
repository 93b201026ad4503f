"""Which source of squared norms is used for a model, and why."""

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

TRIALS = 4  # measurements by each source before one is chosen, the first of them untimed
WORTH = 2  # measurements by halves that say as much of |G|^2 as one per example: 1/(1 - b/B) at b = B/2
SHORT = 4  # samples
FEW = 32  # samples; BatchNorm over fewer makes the noise scale another one (docs/believing.md)


class Source(Protocol):
    """Makes the four numbers of a batch, at the weights of now, without a trace."""

    mean_gradient: MeanGradient

    def measure(self, batch: Any) -> SquaredNorms | None:
        """On the device, not waited for; None where the batch is too short."""
        ...


class NoiseMeter:
    """Measures batches by the source that was asked for, or by the cheaper of two.

    "auto" takes turns between both for the first measurements and then keeps to norms per example if one of them takes
    less time than the two by halves that say as much; by halves as soon as the model turns out not to allow the other.

    Args:
        choice: "auto", "halves" or "per_example".
        views: also to be measured; only halves can.
        timed: whether a clock may be read. If not, "auto" measures per example where there are no convolutions, whose
            norms take two to four times as long (docs/measuring.md).
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
            "per example": PerExample(model, batch_loss),  # tried first, since a model may not allow it
            "halves": HalfBatches(model, batch_loss, views),
        }
        self._longest = 0  # rows of the longest batch so far
        self._trials: dict[str, list[tuple[Moment, Moment]]] = {name: [] for name in self._sources}
        self._stopwatch = Stopwatch(next(model.parameters()).device)
        self._picked, self._why = self._pick_at_once(views, timed)

    def choose_at_once(self) -> None:
        """Choose a source by the model alone, if that is still open."""
        if self._picked is None:
            self._picked, self._why = self._pick_at_once(None, timed=False)

    def measure(self, batch: Any, samples: int) -> Measurement | None:
        """The four numbers of a batch, on the device; None where it is too short, or nothing trains.

        Args:
            batch: nested tensors, samples along their first dimension.
            samples: how many it was cut from.

        Raises:
            Unsupported: where source="per_example" was asked for and the model does not allow it.
        """
        rows = batch_length(batch)
        self._longest = max(self._longest, rows)
        if not trainable(self._model):
            return None  # frozen altogether for a while
        if rows < SHORT <= self._longest:
            return None  # an epoch's last few samples: many a model that never sees one alone cannot take one
        self._coupling.look(batch)
        name = self._picked or self._pick_by_time() or min(self._trials, key=lambda name: len(self._trials[name]))
        begin, norms, failed = self._stopwatch.mark(), None, None
        try:
            norms = self._sources[name].measure(batch)
        except Exception as error:  # a single example, hooks, memory: whatever stops this source may suit the other
            if self._choice == "per_example" and isinstance(error, Unsupported):
                raise Unsupported(f"source='per_example' cannot measure this model: {error}. Use 'auto'") from error
            if self._choice != "auto" or name == "halves":
                raise
            failed = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        if failed is not None:  # (outside of the except block, which would keep alive what the failed pass holds)
            name = self._pick("halves", failed)
            norms = self._sources[name].measure(batch)
        if self._picked is None:
            self._trials[name].append((begin, self._stopwatch.mark()))
        if norms is None:
            return None
        return Measurement(norms, name, self._why, self._caveat(norms, rows, samples))

    def state_dict(self) -> dict[str, Any]:
        """What has been found out about model and loss; a choice of source that is not made yet begins anew."""
        gradients = {name: source.mean_gradient.state_dict() for name, source in self._sources.items()}
        return {
            "picked": self._picked, "why": self._why, "longest": self._longest,
            "coupling": self._coupling.state_dict(), "gradients": gradients,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a source that is asked for now goes before the one picked then."""
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
