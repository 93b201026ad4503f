"""From the finder's measurements to the batch sizes that it suggests. Pure functions."""

from __future__ import annotations

from ..decision import Situation, goodput, goodput_optimum, nearest_power_of_2, reference_batch_size
from .blocks import Measured
from .suggestion import BatchSizeSuggestion


def suggest(measured: Measured, critical: float, fits: int | None = None) -> BatchSizeSuggestion:
    """The suggestion from the last estimate.

    Args:
        measured: the measurements.
        critical: the critical batch over B_simple.
        fits: the largest batch that fits in memory, samples. None if not known.
    """
    last, useful = measured.curve[-1], useful_batch_size(measured, critical)
    return BatchSizeSuggestion(
        last.simple, last.low, last.high, min(useful, fits) if useful and fits else useful,
        tuple(measured.samples), tuple(measured.curve), measured.batch_size, measured.step_time, useful,
        fastest_batch_size(measured, critical), fits, critical_over_simple=critical, doubt=last.doubt,
    )  # fmt: skip


def useful_batch_size(measured: Measured, critical: float) -> int | None:
    """The batch size that a run would aim at with the last estimate, samples. None if the noise scale is not known.

    It is at most an eighth of the samples seen. It does not depend on the step time, so it holds for any device with
    enough memory.

    Args:
        measured: the measurements.
        critical: the critical batch over B_simple.
    """
    if not _is_known(measured):
        return None
    now = Situation(
        noise_scale=measured.curve[-1], batch_size=measured.batch_size,
        reference=reference_batch_size(measured.batch_size), progress=0.0, step_time=None,
        max_batch_size=largest_suggested(measured), critical=critical,
    )  # fmt: skip
    return min(goodput(now)[0], largest_suggested(measured))


def fastest_batch_size(measured: Measured, critical: float) -> int | None:
    """The power of 2 with the most progress per second, samples. None if noise scale or step time are not known."""
    if measured.step_time is None or not _is_known(measured):
        return None
    optimum = goodput_optimum(critical * measured.curve[-1].believed, measured.step_time)
    return nearest_power_of_2(min(optimum, largest_suggested(measured)))


def _is_known(measured: Measured) -> bool:
    last = measured.curve[-1]
    return last.cautious > 0 and last.caveat is None


def largest_suggested(measured: Measured) -> int:
    """The largest batch to suggest, samples: an eighth of the samples seen, but at least the measured batch."""
    return max(measured.batch_size, measured.samples[-1] // 8)
