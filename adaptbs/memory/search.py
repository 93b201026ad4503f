"""Searches for the largest batch size that fits in memory, by trying one size after another. Pure functions.

The peak memory of a training step is affine in its batch size, peak(B) = a + b B, once the optimizer's state exists. a
are the bytes in use anyway (weights, state, gradients), and b are the activations of one sample. The law is only
approximate: allocators round, and convolutions may need another workspace from some size on. So only a size that has
been run is taken to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MOST_TRIALS = 8
ENOUGH = 4  # trials after which the answer need not be exact to one sample
# A predicted size this near above one that fits (relative) needs no further trial. The second value holds from AFFINE
# trials on, which is as many as affine memory needs.
NEAR, LATE = 0.01, 0.015
AFFINE = 5
APART = 1000  # an interval between sizes with a larger ratio than this is halved by ratio
JUMP = 1.1  # slopes with a larger ratio than this show that memory jumped between two sizes
ROUNDING = 0.0005  # error of a measured peak as a share of the limit; it matters if a line is extended far
FAR = 3  # a prediction above this many times the largest size that fits allows for ROUNDING in the slope
MARGIN = 0.002  # share of the limit that a predicted size leaves free, or half of NEAR in samples if that is less
# After a size ran out of memory, a prediction above TWICE the largest size that fits is not tried at once. The search
# first tries the size at the share CAUTIOUS of the limit, where a jump of memory would show without running out, unless
# that is below STEP times the largest size that fits.
CAUTIOUS = 0.8
TWICE, STEP = 2, 1.2
CLOSE = 0.02  # a size this near below one that ran out (relative) is taken to run out as well


@dataclass(frozen=True, slots=True)
class Trial:
    """A training step that was tried.

    Attributes:
        batch_size: samples.
        peak: largest number of bytes in use at once. None if memory ran out.
        limit: bytes that may be in use.
        rest: bytes that were in use before the step. The batch did not cause them.
    """

    batch_size: int
    peak: int | None
    limit: int
    rest: int = 0

    @property
    def fits(self) -> bool:
        """True if the step ran within the limit."""
        return self.peak is not None and self.peak <= self.limit


def search(
    run: Callable[[int], Trial],
    start: int,
    most: int,
    *,
    least: int = 1,
    known: Sequence[Trial] = (),
    careful: bool = False,
    most_failures: int = MOST_TRIALS,
) -> list[Trial]:
    """Search for the largest size up to `most` that fits. `largest_fitting` of the returned trials is the answer.

    If memory is affine in the batch, it takes at most five trials, one of which runs out of memory. Otherwise it takes
    at most eight.

    Args:
        run: tries a size, samples.
        start: the first size to try if no trial is known, samples.
        most: the largest size that is of use, samples.
        least: the smallest size that the model accepts, samples.
        known: trials made before.
        careful: try only sizes that surely fit, because running out of memory would end the process.
        most_failures: number of trials out of memory at which the search ends.

    Returns:
        The known trials, followed by the new ones.
    """
    trials = list(known)
    while len(trials) - len(known) < MOST_TRIALS:
        if sum(trial.peak is None for trial in trials[len(known) :]) >= most_failures:
            break
        size = next_size(trials, start, most, least, careful)
        if size is None:
            break
        trials.append(run(size))
    return trials


def largest_fitting(trials: Sequence[Trial]) -> int | None:
    """The largest size that fits within the current limit, samples. None if none does."""
    return max((t.batch_size for t in _by_limit_of_now(trials) if t.fits), default=None)


def next_size(trials: Sequence[Trial], start: int, most: int, least: int = 1, careful: bool = False) -> int | None:
    """The size to try next, samples. None if the largest size that fits is known well enough.

    One size that fits tells which larger sizes surely fit, because the bytes that it needed grow at most in proportion
    to the batch. Two such sizes draw a line, and two sizes around the limit draw a better one. A size that ran out of
    memory tells nothing more than that.
    """
    trials = _by_limit_of_now(trials)
    if not trials:
        return min(start, most)
    tried = {t.batch_size for t in trials}
    fitting = sorted((t for t in trials if t.fits), key=lambda t: t.batch_size)
    beyond = sorted((t for t in trials if not t.fits), key=lambda t: t.batch_size)
    above = beyond[0] if beyond else None
    ceiling = most if above is None else min(most, above.batch_size - 1)
    if not fitting:
        return None if ceiling < least else min(max(_below(beyond), least), ceiling)
    low = fitting[-1]
    near = low.batch_size * (1 + (NEAR if len(trials) < AFFINE else LATE))
    if ceiling <= near:
        return None
    predicted = _predicted(fitting, beyond)
    if careful:
        predicted = min(predicted, _affordable(low))
    elif 1 < len(fitting) < len(trials) < AFFINE - 1 and predicted > TWICE * low.batch_size and beyond[-1].peak is None:
        predicted = min(predicted, _cautious(low, trials) or predicted)
    near = max(near, low.batch_size + (len(trials) >= ENOUGH))
    if int(predicted) <= near:
        upper = 0 if careful else int(_at_most(trials, low, ceiling))
        if upper <= near:
            return None
        predicted = (low.batch_size + upper) / 2
    if above is not None and predicted >= above.batch_size * (1 - CLOSE * (above.peak is None)):
        predicted = _between(low, above, trials)  # memory ran out below the size that the line predicts
    return _untried(int(predicted), low, ceiling, tried)


def _below(beyond: Sequence[Trial]) -> int:
    """A size below those that do not fit. No size is known yet that fits."""
    lowest = beyond[0]
    if lowest.peak is None:
        return 1  # a size that ran out tells nothing about smaller ones, so start again from the smallest
    by_rest = _affordable(lowest)
    if len(beyond) < 2 or beyond[1].peak is None or (slope := _slope(*beyond[:2])) <= 0:
        return int(by_rest)
    by_line = lowest.batch_size - (lowest.peak - (1 - MARGIN) * lowest.limit) / slope
    return int(min(by_rest, by_line)) if by_line > 0 else lowest.batch_size // 2


def affordable(trial: Trial) -> float:
    """The largest size that surely fits, by one that was run, samples.

    Growing from B to B' adds at most (B'/B - 1) times the bytes that B needed.
    """
    return max(_affordable(trial), trial.batch_size if trial.fits else 0)


def _predicted(fitting: Sequence[Trial], beyond: Sequence[Trial]) -> float:
    """The size at which a line through the trials reaches the limit, samples."""
    low = fitting[-1]
    if beyond and beyond[0].peak is not None and beyond[0].peak > (low.peak or 0):
        above, least = beyond[0], min(_slopes([*fitting, *beyond]))
        if _slope(low, above) <= JUMP * least:
            return _on_line(low, _slope(low, above))
        # Memory jumps between the two. The size at which a line down from the upper one reaches the limit surely fits.
        # If about that size has run already, halve the interval above it.
        after = _on_line(above, least)
        if after > low.batch_size * (1 + NEAR):
            return after
        return (low.batch_size + min(_on_line(low, least), above.batch_size)) / 2
    if len(fitting) < 2 or _slope(fitting[-2], low) <= 0:
        return _affordable(low)
    slope = _slope(fitting[-2], low)
    if slope > JUMP * min(_slopes(fitting)):  # memory jumped between the two
        slope = min(_slopes(fitting))
    predicted = _on_line(low, slope)
    if predicted > FAR * low.batch_size:
        careful = slope + ROUNDING * low.limit / (low.batch_size - fitting[-2].batch_size)
        predicted = max(_on_line(low, careful), _affordable(low))
    return predicted


def _on_line(trial: Trial, slope: float, share: float = 1.0) -> float:
    """The size at which a line through a trial reaches a share of the limit, samples.

    If the share is 1, the size leaves a small margin below the limit.
    """
    assert trial.peak is not None
    margin = min(MARGIN * trial.limit, NEAR / 2 * slope * trial.batch_size) if share == 1 else 0
    return trial.batch_size + (share * trial.limit - margin - trial.peak) / slope


def _cautious(low: Trial, trials: Sequence[Trial]) -> float | None:
    """A size low enough that a jump of memory would show without running out. None if it is hardly above `low`."""
    size = _on_line(low, min(_slopes(trials)), CAUTIOUS)
    return size if size > STEP * low.batch_size else None


def _between(low: Trial, above: Trial, trials: Sequence[Trial]) -> float:
    """A size between one that fits and one that ran out below the size that the line predicts."""
    if above.batch_size > APART * low.batch_size:  # half of a size that is far too large is still far too large
        return math.sqrt(low.batch_size * above.batch_size)
    cautious = _cautious(low, trials)
    halved = (low.batch_size + above.batch_size) / 2
    return cautious if cautious is not None and cautious < above.batch_size else halved


def _at_most(trials: Sequence[Trial], low: Trial, ceiling: int) -> float:
    """The largest size that may still fit where memory jumps, by the smallest slope seen. 0 if there is no jump."""
    slopes = _slopes(trials)
    return min(_on_line(low, min(slopes)), ceiling) if max(slopes) > JUMP * min(slopes) else 0


def _slopes(trials: Sequence[Trial]) -> list[float]:
    """Bytes per sample between neighbouring sizes, and all bytes per sample of the smallest size if these are fewer."""
    known = sorted((t for t in trials if t.peak is not None), key=lambda t: t.batch_size)
    # If two peaks differ by little more than rounding, their slope is too uncertain to show a jump.
    apart = ROUNDING / (JUMP - 1) * known[0].limit
    rising = [pair for pair in pairwise(known) if _rise(*pair) > 0]
    slopes = [_slope(*pair) for pair in [pair for pair in rising if _rise(*pair) > apart] or rising]
    first = known[0]
    assert first.peak is not None
    took = first.peak - first.rest
    alone = max(took, 1) / first.batch_size
    return [*slopes, alone] if not slopes or (took > apart and alone < min(slopes) / JUMP) else slopes


def _affordable(trial: Trial) -> float:
    assert trial.peak is not None
    took = max(trial.peak - trial.rest, 1)
    return trial.batch_size * (trial.limit - trial.rest) / took


def _slope(a: Trial, b: Trial) -> float:
    return _rise(a, b) / (b.batch_size - a.batch_size)


def _rise(a: Trial, b: Trial) -> int:
    assert a.peak is not None and b.peak is not None
    return b.peak - a.peak


def _untried(size: int, low: Trial, ceiling: int, tried: set[int]) -> int | None:
    size = min(max(size, low.batch_size + 1), ceiling)
    return None if size in tried else size


def _by_limit_of_now(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the latest limit, because another process may have taken or freed memory meanwhile."""
    return [Trial(t.batch_size, t.peak, trials[-1].limit, t.rest) for t in trials]
