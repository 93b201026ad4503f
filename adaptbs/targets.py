"""Ready-made functions for `target=` that need no noise scale: ramps by progress, by a metric or by the schedule.

Each makes a function (noise scale, batch size, progress 0..1) -> wanted batch size, samples. It is called at every
decision, so once in each share `decide_every` of the run. The wanted size is then limited by `max_batch_size` and by
memory. Where the length of the run is not known, progress is that of the first epoch and stays at 1 afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from .checks import check_choice, check_share, check_size
from .types import NoiseScale, Target

LARGEST = 2**40  # samples, more than any dataset has; growth without end would come to numbers beyond those of a float
GRID = 1000  # number of intervals at whose ends a schedule is evaluated to find its peak
WITHIN = 1e-9  # tolerance for rounding, so that progress .3 counts as three intervals of .1


def step_ramp(start: int, every: float = 0.25, factor: float = 2) -> Target:
    """Multiply the batch at equal intervals: start * factor^floor(progress/every).

    Args:
        start: batch size at the beginning of the run, samples.
        every: share of the run between two increases, between 0 and 1.
        factor: factor of each increase, above 1.

    Raises:
        TypeError: if `start` is not an integer or `every` is not a number.
        ValueError: if an argument is out of range, or `factor` is not a number.

    Source: Smith et al. 2018, arXiv:1711.00489, increase the batch where a schedule would have cut the learning rate.
    Devarakonda et al. 2017 (AdaBatch), arXiv:1712.02029, double it at equal intervals and scale the learning rate with
    it.
    """
    check_size("start", start)
    check_share("every", every)
    _check_factor(factor)
    last = math.ceil(1 / every - WITHIN) - 1  # increases in all; one at the very end of the run would train nothing

    def target(noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        return _grown(start, factor, min(math.floor(progress / every + WITHIN), last))

    return target


def linear_ramp(start: int, end: int) -> Target:
    """Grow the batch linearly: start + (end - start) * progress, rounded to a whole sample.

    Args:
        start: batch size at the beginning of the run, samples.
        end: batch size at the end of the run, samples.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1.
    """
    return _ramp(start, end, lambda progress: start + (end - start) * progress)


def exponential_ramp(start: int, end: int) -> Target:
    """Grow the batch exponentially: start * (end/start)^progress, rounded to a whole sample.

    Args:
        start: batch size at the beginning of the run, samples.
        end: batch size at the end of the run, samples.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a size is below 1.
    """
    return _ramp(start, end, lambda progress: start * math.pow(end / start, progress))


def _ramp(start: int, end: int, size: Callable[[float], float]) -> Target:
    check_size("start", start)
    check_size("end", end)

    def target(noise_scale: NoiseScale | None, batch_size: int, progress: float) -> float:
        return round(size(min(progress, 1.0)))

    return target


class OnPlateau:
    """The target that `on_plateau` makes.

    When progress falls, another run has begun. Then it forgets the values of the run before.
    """

    def __init__(self, metric: Callable[[], Any], factor: float, patience: int, min_delta: float, mode: str) -> None:
        self._metric, self._factor, self._patience, self._min_delta = metric, factor, patience, min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self._progress = 0.0
        self._forget()

    def _forget(self) -> None:
        self._seen: object = None  # object that the metric returned last; the same object again is not a new value
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
        if signed < self._best - self._min_delta:  # false for nan, which is no improvement
            self._best, self._stale = signed, 0
            return batch_size
        self._stale += 1
        if self._stale < self._patience:
            return batch_size
        self._stale = 0
        # Rounded up, so that even a batch of 1 grows by any factor.
        return math.ceil(min(batch_size * self._factor, LARGEST))


def on_plateau(
    metric: Callable[[], Any], factor: float = 2, patience: int = 2, min_delta: float = 0.0, mode: str = "min"
) -> OnPlateau:
    """Multiply the batch each time a metric stops improving, as ReduceLROnPlateau divides the learning rate.

    A value counts as new if `metric` returns another object than the last time. So return the stored object, not a
    number computed in each call, and a float, because Python has only one object for each small integer. Of several
    values between two decisions only the latest counts. In fastai use
    `lambda: learn.recorder.values[-1][1] if learn.recorder.values else None`, the loss on the validation set.

    Args:
        metric: function without arguments that returns the latest value, or None while there is none.
        factor: factor on the batch at each plateau, above 1.
        patience: number of new values in a row without improvement that make a plateau.
        min_delta: amount by which a value must be better than the best so far to count as an improvement.
        mode: "min" if lower is better, as for a loss; "max" if higher is better.

    Raises:
        TypeError: if `metric` is not a function or `patience` is not an integer; later, if `metric` returns no number.
        ValueError: if another argument is not valid.
    """
    if not callable(metric):
        raise TypeError(f"metric={metric!r}: it must be a function without arguments that returns a number or None")
    _check_factor(factor)
    check_size("patience", patience)
    if isinstance(min_delta, bool) or not isinstance(min_delta, Real) or not 0 <= float(min_delta) < math.inf:
        raise ValueError(f"min_delta={min_delta!r}: it must be a number of at least 0")
    check_choice("mode", mode, ("min", "max"))
    return OnPlateau(metric, factor, patience, min_delta, mode)


def seesaw(start: int, schedule: Callable[[float], float], factor: float = 2) -> Target:
    """Grow the batch as the schedule anneals: by `factor` each time the schedule has cut the learning rate by `factor`.

    With s = schedule(progress)/peak, B = start * factor^floor(log(1/s)/log(factor)). Before the peak B = start.

    The learning rate must follow k = B/start. Over N samples plain SGD moves N/B * lr * |g|. Steps divided by the
    gradient's size (normalised SGD, Adam) move N/B * lr * |g| sqrt(B) while that size is mostly noise, which falls as
    1/sqrt(B). To move as far as at `start`, the schedule's lr has to be multiplied by k for SGD and by sqrt(k) for
    Adam. With a function as `target=` `lr_scaling="auto"` does that, also beyond the critical batch, with
    `base_batch_size` at `start`. So seesaw needs no learning-rate rule of its own.

    Where k = 1/s, Adam's learning rate is s sqrt(1/s) = sqrt(s) of its peak. That is Seesaw: where the schedule cuts by
    alpha, cut by sqrt(alpha) and multiply the batch by alpha. SGD's learning rate stays at its peak, as in Smith et al.
    2018, arXiv:1711.00489. Both hold for any k, so also where a limit holds the batch below start/s. They fail far
    above the noise scale, where the gradient's size is no longer mostly noise. Set `max_batch_size` to at most the
    noise scale.

    Args:
        start: batch size up to the peak, samples.
        schedule: progress 0..1 -> learning rate, in any unit. Only its ratio to its peak counts.
        factor: factor of each increase, above 1.

    Raises:
        TypeError: if `start` is not an integer, `schedule` is not a function or it returns no number.
        ValueError: if another argument is not valid, or `schedule` does not return a finite number of at least 0, or
            is nowhere above 0.

    Source: Meterez et al. 2025 (Seesaw), arXiv:2510.14717.
    """
    check_size("start", start)
    _check_factor(factor)
    if not callable(schedule):
        raise TypeError(f"schedule={schedule!r}: it must be a function (progress 0..1) -> learning rate")
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
        cuts = (math.log(peak) - math.log(now)) / math.log(factor)  # peak / now may be beyond the numbers of a float
        return _grown(start, factor, math.floor(cuts + WITHIN))

    return target


def _grown(start: int, factor: float, times: int) -> float:
    """`start` multiplied by `factor` so many times, at most `LARGEST`, samples."""
    if math.log(start) + times * math.log(factor) >= math.log(LARGEST):
        return LARGEST
    return float(start * factor**times)


def _rate(schedule: Callable[[float], float], progress: float) -> float:
    rate = _number(schedule(progress), "schedule=")
    if not 0 <= rate < math.inf:
        raise ValueError(
            f"schedule= returned {rate!r} at progress {progress}: it must return a finite number of at least 0"
        )
    return rate


def _number(value: Any, name: str = "metric=") -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor
        raise TypeError(f"{name} returned {value!r}: it must return a number") from error


def _check_factor(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 < float(value) < math.inf:
        raise ValueError(f"factor={value!r}: it must be a finite number above 1, the factor on the batch")
