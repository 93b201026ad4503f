"""Ready-made functions for `target=` that ask no noise scale: ramps by progress, by a metric, by the schedule.

Each makes a function (noise scale, batch size, progress 0..1) -> wanted batch size, samples. It is asked at each
decision, so every `decide_every` of the run, and what it answers is cut down to `max_batch_size` and to what memory
affords. Where the length of the run is not known, progress is that of the first epoch and stays at 1 from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from .checks import check_choice, check_share, check_size
from .types import NoiseScale, Target

LARGEST = 2**40  # samples; more than any dataset, where a learning rate of 0 asks for a batch without end
GRID = 1000  # points at which a schedule is looked at for its peak
WITHIN = 1e-9  # rounding: three tenths of a run are three times a tenth of it


def step_ramp(start: int, every: float = 0.25, factor: float = 2) -> Target:
    """Multiply the batch at equal intervals: start * factor^floor(progress/every).

    Args:
        start: the size to begin with, samples.
        every: share of the run between two rises, between 0 and 1.
        factor: of each rise, above 1.

    Raises:
        ValueError, TypeError: for arguments that cannot be.

    Source: Smith et al. 2018, arXiv:1711.00489, who rise where a schedule would have cut the learning rate; Devarakonda
    et al. 2017 (AdaBatch), arXiv:1712.02029, who double at equal intervals and scale the learning rate with the batch.
    """
    check_size("start", start)
    check_share("every", every)
    _check_factor(factor)
    last = math.ceil(1 / every - WITHIN) - 1  # rises: the run's very end is not worth another

    def target(noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        return float(start * factor ** min(math.floor(progress / every + WITHIN), last))

    return target


def linear_ramp(start: int, end: int) -> Target:
    """As many samples more at each equal share of the run: start + (end - start) progress, to the nearest sample.

    Raises:
        ValueError, TypeError: for sizes that are not whole numbers of at least 1.
    """
    return _ramp(start, end, lambda progress: start + (end - start) * progress)


def exponential_ramp(start: int, end: int) -> Target:
    """By the same factor at each equal share of the run: start (end/start)^progress, to the nearest sample.

    Raises:
        ValueError, TypeError: for sizes that are not whole numbers of at least 1.
    """
    return _ramp(start, end, lambda progress: start * math.pow(end / start, progress))


def _ramp(start: int, end: int, size: Callable[[float], float]) -> Target:
    check_size("start", start)
    check_size("end", end)

    def target(noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        return round(size(min(progress, 1.0)))

    return target


class OnPlateau:
    """See `on_plateau`, which makes it.

    A progress that falls back is the beginning of another run, before which all that was seen is forgotten.
    """

    def __init__(self, metric: Callable[[], Any], factor: float, patience: int, min_delta: float, mode: str) -> None:
        self._metric, self._factor, self._patience, self._min_delta = metric, factor, patience, min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self._progress = 0.0
        self._forget()

    def _forget(self) -> None:
        self._seen: object = None  # the latest object that the metric gave: as long as it gives that, nothing is new
        self._best, self._stale = math.inf, 0

    def __call__(self, noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        if progress < self._progress:
            self._forget()
        self._progress = progress
        value = self._metric()
        if value is None or value is self._seen:
            return batch_size
        self._seen = value
        signed = self._sign * _number(value)
        if signed < self._best - self._min_delta:  # (nan is no improvement)
            self._best, self._stale = signed, 0
            return batch_size
        self._stale += 1
        if self._stale < self._patience:
            return batch_size
        self._stale = 0
        return math.ceil(batch_size * self._factor)  # (a batch of 1 grows by any factor)


def on_plateau(
    metric: Callable[[], Any], factor: float = 2, patience: int = 2, min_delta: float = 0.0, mode: str = "min"
) -> OnPlateau:
    """Multiply the batch each time a metric has stopped improving, as ReduceLROnPlateau divides the learning rate.

    A value is new where `metric` returns another object than before, so let it return the one that was stored, not a
    number made anew at each call; of several values between two decisions only the latest is seen. In fastai:
    `lambda: learn.recorder.values[-1][1] if learn.recorder.values else None`, the loss on the validation set.

    Args:
        metric: returns the latest value, or None while there is none.
        factor: that the batch is multiplied by, above 1.
        patience: so many new values in a row without improvement make a plateau.
        min_delta: by how much a value must be better than the best so far to be an improvement.
        mode: "min" where less is better, as with a loss, "max" where more is.

    Raises:
        ValueError, TypeError: for arguments that cannot be; later, where `metric` returns no number.
    """
    if not callable(metric):
        raise TypeError(f"metric={metric!r}: it must be a function of nothing that returns the latest value, or None")
    _check_factor(factor)
    check_size("patience", patience)
    if isinstance(min_delta, bool) or not isinstance(min_delta, Real) or not 0 <= float(min_delta) < math.inf:
        raise ValueError(f"min_delta={min_delta!r}: it must be a number of at least 0")
    check_choice("mode", mode, ("min", "max"))
    return OnPlateau(metric, factor, patience, min_delta, mode)


def seesaw(start: int, schedule: Callable[[float], float], factor: float = 2) -> Target:
    """Grow the batch as the schedule anneals: where the learning rate has been cut by `factor`, `factor` times as many.

    With s = schedule(progress)/peak, B = start * factor^floor(log(1/s)/log(factor)); before the peak B = start.

    The learning rate has to follow k = B/start. Over N samples plain SGD moves N/B * lr * |g|; steps divided by the
    gradient's size (normalised SGD; Adam) move N/B * lr * |g| sqrt(B) while noise makes up that size, which then falls
    as 1/sqrt(B). So to move as far as at `start` the schedule's lr is to be multiplied by k, or by sqrt(k). That is
    what `lr_scaling="auto"` does (with `base_batch_size` at `start`), so there is no rule of its own to give. Where
    k = 1/s Adam's learning rate comes to s sqrt(1/s) = sqrt(s) of its peak, which is Seesaw: where the schedule cuts by
    alpha, cut by sqrt(alpha), and alpha times the batch. SGD's stays at its peak, as in Smith et al. 2018,
    arXiv:1711.00489. Both hold for any k, so too where a limit holds the batch below 1/s. They do not hold far above
    the noise scale, where noise no longer makes up the gradient's size: let `max_batch_size` be no more than that.

    Args:
        start: the batch size until the peak, samples.
        schedule: progress 0..1 -> the learning rate, in any unit: only its ratio to its peak counts.
        factor: by which the batch grows each time, above 1.

    Raises:
        ValueError, TypeError: for arguments that cannot be, such as a schedule that is nowhere above 0.

    Source: Meterez et al. 2025 (Seesaw), arXiv:2510.14717.
    """
    check_size("start", start)
    _check_factor(factor)
    if not callable(schedule):
        raise TypeError(f"schedule={schedule!r}: it must be a function progress -> learning rate")
    rates = [_rate(schedule, i / GRID) for i in range(GRID + 1)]
    peak = max(rates)
    if peak <= 0:
        raise ValueError("schedule= is nowhere above 0: it must return the learning rate, or its ratio to the peak")
    at_peak = rates.index(peak) / GRID

    def target(noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        now = _rate(schedule, min(progress, 1.0))
        if progress <= at_peak or now >= peak:
            return start
        if now == 0:
            return LARGEST
        cuts = math.floor(math.log(peak / now, factor) + WITHIN)
        return min(float(start * factor**cuts), LARGEST)

    return target


def _rate(schedule: Callable[[float], float], progress: float) -> float:
    rate = _number(schedule(progress), "schedule=")
    if not 0 <= rate < math.inf:
        raise ValueError(
            f"schedule= returned {rate!r} at progress {progress}: a learning rate is a finite number of at least 0"
        )
    return rate


def _number(value: Any, name: str = "metric=") -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} returned {value!r}: it must return a number") from error


def _check_factor(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 < float(value) < math.inf:
        raise ValueError(f"factor={value!r}: it must be a number above 1, which the batch is multiplied by")
