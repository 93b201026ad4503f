"""The result of `bs_find`: the noise scale, and the batch sizes that it suggests."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import check_functions
from ..report import TradeOff, trade_off_at
from ..timing import Time
from ..types import ENOUGH, FEW, NoiseScale, noise_scale_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BatchSizeSuggestion:
    """The result of `bs_find`. `print(found.trade_off())` shows the steps, samples and time of each batch size.

    Three sizes are reported beside the one to use: `useful` by the noise, `fastest` by the step time, and `fits` by the
    memory of this device.

    Attributes:
        noise_scale: B_simple, samples. None if the gradient was lost in its noise.
        low, high: confidence limits of B_simple, samples. `high` is inf while |G|^2 is not significantly above 0.
        batch_size: the size to use, samples: `useful`, but at most `fits`. None if nothing is known of the noise scale.
        samples: samples seen up to each block of batches.
        curve: the smoothed estimate after each block.
        loader_batch_size: size of the batches that were measured, samples.
        step_time: t(B), seconds of a training step on this device. None if it could not be measured. `batch_size` does
            not depend on it.
        useful: the largest power of 2 at which a sample still brings at least 80 % of the progress that it brings at a
            small batch, samples. It depends on the kind of optimizer.
        fastest: the power of 2 with the most progress per second on this device, samples, however many samples the run
            then takes. None if steps could not be timed.
        fits: the largest size that was run and stayed within this device's memory, samples. Sizes are tried up to an
            eighth of the samples seen, and on a CPU up to `useful`. None if it could not be determined.
        others: further suggestions as (name, batch size), see `suggested_by`.
        critical_over_simple: the critical batch over B_simple: 1.5 for SGD, 3 for Adam and its kin.
        doubt: reason not to trust `noise_scale` as a number (`NoiseScale.doubt`); None if there is none. Where samples
            are coupled, or rows are not samples, no size is suggested.
        confidence: confidence of `low` and `high`, 0..1.
    """

    noise_scale: float | None
    low: float
    high: float
    batch_size: int | None
    samples: tuple[int, ...] = field(repr=False)
    curve: tuple[NoiseScale, ...] = field(repr=False)
    loader_batch_size: int = field(repr=False)
    step_time: Time | None = field(repr=False, default=None)
    useful: int | None = field(repr=False, default=None)
    fastest: int | None = field(repr=False, default=None)
    fits: int | None = field(repr=False, default=None)
    others: tuple[tuple[str, float], ...] = field(repr=False, default=())
    critical_over_simple: float = field(repr=False, default=1.0)
    doubt: str | None = field(repr=False, default=None)
    confidence: float = field(repr=False, default=0.9)

    def __str__(self) -> str:
        size = "no batch size" if self.batch_size is None else f"batch size {self.batch_size:,}"
        doubt = "" if self.doubt is None else f" (doubt: {self.doubt}{self._remedy})"
        return f"{size}; noise scale {noise_scale_text(self.noise_scale, self.low, self.high)}{doubt}"

    @property
    def _remedy(self) -> str:
        blocks = len(self.curve)
        if blocks >= ENOUGH or self.doubt != FEW:
            return ""
        return f", {blocks} of {ENOUGH} blocks of batches: lower the loader's batch size or n_batch=, or raise num_it="

    @property
    def suggestions(self) -> Any:
        """All suggested batch sizes as a named tuple, samples: useful, fastest, fits, and those of `suggested_by`."""
        found = {"useful": self.useful, "fastest": self.fastest, "fits": self.fits, **dict(self.others)}
        return namedtuple("SuggestedBatchSizes", found)(**found)

    def suggested_by(self, *functions: Callable[[BatchSizeSuggestion], float]) -> BatchSizeSuggestion:
        """Return a copy of this result with one more suggestion per function, under the function's name.

        A function whose name cannot name a field, such as a lambda's, or is taken, is numbered: `suggestion_1`.

        Raises:
            TypeError: if one of them is no function, or returns neither a number nor None.
        """
        check_functions("suggest_funcs", functions)
        names, others = [*self.suggestions._fields], [*self.others]
        for number, function in enumerate(functions, len(others) + 1):
            name = getattr(function, "__name__", "")
            names.append(name if _names_a_field(name) and name not in names else f"suggestion_{number}")
            others.append((names[-1], _number(function(self), names[-1])))
        return replace(self, others=tuple(others))

    def trade_off(self, base: int | None = None) -> TradeOff:
        """Steps, samples and time to the same progress by batch size, relative to `base`.

        Args:
            base: batch size that counts as 1, samples. None: the loader's.
        """
        return trade_off_at(
            self.noise_scale, self.low, self.high,
            base_batch_size=self.loader_batch_size if base is None else base,
            largest=self.samples[-1], step_time=self.step_time, critical_over_simple=self.critical_over_simple,
            suggested=self.batch_size,
        )  # fmt: skip

    def to_dict(self) -> dict[str, list[Any]]:
        """The smoothed estimate after each block, as columns: samples, trace, grad_sq, noise_scale, low, high."""
        names = {"trace": "trace", "grad_sq": "grad_sq", "noise_scale": "simple", "low": "low", "high": "high"}
        columns = {column: [getattr(n, name) for n in self.curve] for column, name in names.items()}
        return {"samples": list(self.samples), **columns}

    def plot(self) -> Figure:
        """Plot tr(Sigma), |G|^2 and their ratio with its confidence band against samples; below, the trade-off."""
        from ..report import plot_suggestion

        known = self.noise_scale is not None or self.low > 0
        return plot_suggestion(
            self.to_dict(), self.batch_size, self.suggestions._asdict(), confidence=self.confidence,
            draw_trade_off=self.trade_off().draw if known else None,
        )  # fmt: skip


def _number(value: Any, name: str) -> Any:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if value is not None and not isinstance(value, Real):
        raise TypeError(f"suggest_funcs: {name} returned {value!r}: it must return a batch size, a number, or None")
    return value


def _names_a_field(name: str) -> bool:
    """True if a named tuple may have a field of this name."""
    return name.isidentifier() and not iskeyword(name) and not name.startswith("_")
