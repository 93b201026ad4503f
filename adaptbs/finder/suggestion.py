"""What `bs_find` found, and what it suggests."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..report import TradeOff, trade_off_at
from ..timing import Time
from ..types import NoiseScale

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BatchSizeSuggestion:
    """What `bs_find` found; `print(found.trade_off())` tells what each batch size would take.

    Three limits stand behind the size to use: what is `useful`, by the noise; what is `fastest`, by the step time; and
    what `fits`, by the memory of this device.

    Attributes:
        noise_scale: B_simple, samples; None where the gradient was lost in its noise.
        low, high: its confidence limits, samples; high is inf while |G|^2 is not significantly above 0.
        batch_size: to use: what is useful, as far as it fits; None where nothing is known of the noise scale.
        samples: seen up to each block of batches.
        curve: the smoothed estimate after each block.
        loader_batch_size: of the batches that were measured, samples.
        step_time: t(B), seconds of a training step on this device; None where it could not be measured. The
            suggested `batch_size` asks nothing of it.
        useful: the largest power of 2 at which a sample still brings at least 80 % of the progress that it brings at a
            small batch, judged at the cautious limit, and by whether the optimizer is one like Adam.
        fastest: the power of 2 with the most progress per second on this device, whatever it takes in samples; None
            where steps could not be timed.
        fits: the largest that was run and stayed within this device's memory, of those up to an eighth of the samples
            seen (of a CPU up to what is useful); None where that could not be found out.
        critical_over_simple: the critical batch over the noise scale: 2.5 for SGD, 4 for Adam and its kin.
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

    @property
    def suggestions(self) -> Any:
        """All of them as a named tuple, samples: useful, fastest, fits, and those of `suggested_by`."""
        found = {"useful": self.useful, "fastest": self.fastest, "fits": self.fits, **dict(self.others)}
        return namedtuple("SuggestedBatchSizes", found)(**found)

    def suggested_by(self, *functions: Callable[[BatchSizeSuggestion], float]) -> BatchSizeSuggestion:
        """The same with a suggestion more of each function, under its name."""
        more = tuple((getattr(function, "__name__", repr(function)), function(self)) for function in functions)
        return replace(self, others=(*self.others, *more))

    def trade_off(self, base: int | None = None) -> TradeOff:
        """Steps, samples and time to the same progress, by batch size, relative to `base` (the loader's where None)."""
        return trade_off_at(
            self.noise_scale, self.low, self.high,
            base_batch_size=self.loader_batch_size if base is None else base,
            largest=self.samples[-1], step_time=self.step_time, critical_over_simple=self.critical_over_simple,
        )  # fmt: skip

    def to_dict(self) -> dict[str, list[Any]]:
        """The smoothed estimate after each block, as columns: samples, trace, grad_sq, noise_scale, low, high."""
        names = {"trace": "trace", "grad_sq": "grad_sq", "noise_scale": "simple", "low": "low", "high": "high"}
        columns = {column: [getattr(n, name) for n in self.curve] for column, name in names.items()}
        return {"samples": list(self.samples), **columns}

    def plot(self) -> Figure:
        """Noise tr(Sigma), scale |G|^2 and their ratio with its band, against samples."""
        from ..report import plot_suggestion

        return plot_suggestion(self.to_dict(), self.batch_size, self.suggestions._asdict())
