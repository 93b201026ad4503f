"""Which batch size to try next, to find the largest that fits in memory. Pure functions, no state.

The peak memory of a training step is affine in its batch size, peak(B) = a + b B, once the optimizer's state exists:
a is what lies there anyway (weights, state, gradients), b a sample's share of activations. Nearly, that is: allocators
round, and convolutions may take another workspace from some size on. So no size is believed that has not been run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MOST_TRIALS = 8
ENOUGH = 4  # after as many, one sample more or less is not worth another
NEAR, LATE = 0.01, 0.015  # relative: a largest size predicted within this of one that fits is not worth a trial more,
AFFINE = 5  # of which affine memory needs no more than so many
APART = 1000  # times: sizes that lie further apart are halved by ratio
JUMP = 1.1  # slopes that differ by more show that memory jumped between two sizes
ROUNDING = 0.0005  # of the limit: how far two peaks may be off their line, which matters where it is drawn out far
FAR = 3  # times the largest size that fits: beyond, a line through two smaller ones is taken with that caution
MARGIN = 0.002  # of the limit, that a predicted size leaves free; or half of NEAR in samples, where that is less
CAUTIOUS = 0.8  # of the limit: once something ran out, the size that a line puts there comes first, where a jump shows
TWICE, STEP = 2, 1.2  # times the largest that fits: what is further away is come to so, by a size at least so large
CLOSE = 0.02  # relative: a size this near below one that ran out is taken to run out as well


@dataclass(frozen=True, slots=True)
class Trial:
    """A training step that was tried.

    Attributes:
        batch_size: samples.
        peak: bytes in use at the worst moment; None where memory ran out.
        limit: bytes that may be in use.
        rest: bytes that were in use before it, and are no part of what the batch takes.
    """

    batch_size: int
    peak: int | None
    limit: int
    rest: int = 0

    @property
    def fits(self) -> bool:
        """Whether it ran within the limit."""
        return self.peak is not None and self.peak <= self.limit


def search(
    run: Callable[[int], Trial],
    start: int,
    most: int,
    *,
    least: int = 1,
    known: Sequence[Trial] = (),
    careful: bool = False,
) -> list[Trial]:
    """The trials made to find the largest size that fits, up to `most`; `largest_fitting` of them is the answer.

    At most five trials, of which one runs out, where memory is affine in the batch; eight where it is not.

    Args:
        run: tries a size, samples.
        start: the first size to try, unless something is known.
        most: that is of any use, samples.
        least: that the model takes, samples.
        known: of sizes that have been run before.
        careful: try nothing that is not sure to fit, as running out would end the process.
    """
    trials = list(known)
    while len(trials) - len(known) < MOST_TRIALS:
        size = next_size(trials, start, most, least, careful)
        if size is None:
            break
        trials.append(run(size))
    return trials


def largest_fitting(trials: Sequence[Trial]) -> int | None:
    """The largest size that fits, by the limit of now; None where none does."""
    return max((t.batch_size for t in _by_limit_of_now(trials) if t.fits), default=None)


def next_size(trials: Sequence[Trial], start: int, most: int, least: int = 1, careful: bool = False) -> int | None:
    """The size to try next; None where the largest that fits is known well enough.

    A size that fits bounds what surely fits: all that it took beyond what lay there before grows with the batch at
    most. Two of them draw a line, two around the limit draw a better one. Where memory ran out, nothing but that is
    known of a size.
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
        predicted = _between(low, above, trials)  # it ran out below where the line says
    return _untried(int(predicted), low, ceiling, tried)


def _below(beyond: Sequence[Trial]) -> int:
    """A size below some that do not fit, where none is known that does."""
    lowest = beyond[0]
    if lowest.peak is None:
        return 1  # of a size that ran out nothing is known: the smallest is the only one that cannot run out as well
    by_rest = _affordable(lowest)
    if len(beyond) < 2 or beyond[1].peak is None or (slope := _slope(*beyond[:2])) <= 0:
        return int(by_rest)
    by_line = lowest.batch_size - (lowest.peak - (1 - MARGIN) * lowest.limit) / slope
    return int(min(by_rest, by_line)) if by_line > 0 else lowest.batch_size // 2


def affordable(trial: Trial) -> float:
    """The largest size that surely fits, by one that was run: from B to B' adds at most (B'/B - 1) of what it took."""
    return max(_affordable(trial), trial.batch_size if trial.fits else 0)


def _predicted(fitting: Sequence[Trial], beyond: Sequence[Trial]) -> float:
    """The size at the limit, on a line through what was tried."""
    low = fitting[-1]
    if beyond and beyond[0].peak is not None and beyond[0].peak > (low.peak or 0):
        above, least = beyond[0], min(_slopes([*fitting, *beyond]))
        if _slope(low, above) <= JUMP * least:
            return _on_line(low, _slope(low, above))
        # Between them memory jumps. A line down from the upper one is sure to fit; where that is known, halve the rest.
        after = _on_line(above, least)
        if after > low.batch_size * (1 + NEAR):
            return after
        return (low.batch_size + min(_on_line(low, least), above.batch_size)) / 2
    if len(fitting) < 2 or _slope(fitting[-2], low) <= 0:
        return _affordable(low)
    slope = _slope(fitting[-2], low)
    if slope > JUMP * min(_slopes(fitting)):  # between the two memory has jumped
        slope = min(_slopes(fitting))
    predicted = _on_line(low, slope)
    if predicted > FAR * low.batch_size:
        careful = slope + ROUNDING * low.limit / (low.batch_size - fitting[-2].batch_size)
        predicted = max(_on_line(low, careful), _affordable(low))
    return predicted


def _on_line(trial: Trial, slope: float, share: float = 1.0) -> float:
    """The size that a line through a trial puts at a share of the limit, or just below it where that is all of it."""
    assert trial.peak is not None
    margin = min(MARGIN * trial.limit, NEAR / 2 * slope * trial.batch_size) if share == 1 else 0
    return trial.batch_size + (share * trial.limit - margin - trial.peak) / slope


def _cautious(low: Trial, trials: Sequence[Trial]) -> float | None:
    """The size on the lowest line that leaves room for a jump to show, rather than run out; None where that is near."""
    size = _on_line(low, min(_slopes(trials)), CAUTIOUS)
    return size if size > STEP * low.batch_size else None


def _between(low: Trial, above: Trial, trials: Sequence[Trial]) -> float:
    """A size between one that fits and one that ran out below where the line says."""
    if above.batch_size > APART * low.batch_size:  # (half of a size that is far too large is so as well)
        return math.sqrt(low.batch_size * above.batch_size)
    cautious = _cautious(low, trials)
    halved = (low.batch_size + above.batch_size) / 2
    return cautious if cautious is not None and cautious < above.batch_size else halved


def _at_most(trials: Sequence[Trial], low: Trial, ceiling: int) -> float:
    """The largest size that may still fit where memory has jumped, by the least that a sample took; 0 if it has not."""
    slopes = _slopes(trials)
    return min(_on_line(low, min(slopes)), ceiling) if max(slopes) > JUMP * min(slopes) else 0


def _slopes(trials: Sequence[Trial]) -> list[float]:
    """Bytes a sample between sizes next to each other; and of the smallest all that it took, where that was less."""
    known = sorted((t for t in trials if t.peak is not None), key=lambda t: t.batch_size)
    # (Of two peaks that differ by little more than rounding, a slope cannot be told from another.)
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
    """The same, measured by the latest limit: meanwhile another process may have taken or freed memory."""
    return [Trial(t.batch_size, t.peak, trials[-1].limit, t.rest) for t in trials]
