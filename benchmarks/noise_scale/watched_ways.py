"""Ways to know a BatchNorm model's noise scale from few halves, simulated on measurements of frozen weights.

`watched_head.py` makes the measurements. A window is a twentieth of a run, which is what the package's estimate spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptbs.noise_scale.b_simple import fieller, student_t

FULL, THIRD, IN_STEP = 30, 10, 90  # measurements in a window: by halves, at a third of their cost, of the head
REPETITIONS, CONFIDENCE = 500, 0.9
LATER = 6  # the first window from which ways are judged: before it there is little to keep
SHORT, LONG = 2.0, 6.0  # windows after which the weight of what is kept has fallen to 1/e


@dataclass(frozen=True)
class Moment:
    """Measurements of many batches at one moment's weights; rows of (tr(Sigma), |G|^2), without bias.

    Attributes:
        halves: of the whole model, from the two halves of each batch.
        head: of the layers behind the last BatchNorm, from each example's term, as the step would tell them.
        next_batch: of the whole model, from the gradients of each batch and the next, both of full length.
        true: of the whole model, from all pairs of half batches.
        true_head: the same of the head.
    """

    halves: np.ndarray
    head: np.ndarray
    next_batch: np.ndarray
    true: np.ndarray
    true_head: np.ndarray


Window = Sequence[Moment]


@dataclass(frozen=True)
class Pooled:
    """Estimates of (tr(Sigma), |G|^2), (repetitions, 2), their covariances, and degrees of freedom."""

    mean: np.ndarray
    covariance: np.ndarray
    degrees: float


def truth(window: Window, what: str = "true") -> np.ndarray:
    """(tr(Sigma), |G|^2) of a window. What the step tells of the head is taken from all batches."""
    rows = [getattr(moment, what) for moment in window]
    return np.mean([row.mean(0) if row.ndim > 1 else row for row in rows], 0)


def draw(window: Window, what: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """So many random measurements at random moments of the window, (repetitions, number, 2)."""
    values = [getattr(moment, what) for moment in window]
    which = rng.integers(len(values), size=(REPETITIONS, number))
    found = np.empty((REPETITIONS, number, 2))
    for i, rows in enumerate(values):
        at = which == i
        found[at] = rows[rng.integers(len(rows), size=at.sum())]
    return found


def pool(values: np.ndarray, weights: np.ndarray) -> Pooled:
    """As `adaptbs.noise_scale` pools, of all repetitions at once."""
    w = weights / weights.sum()
    mean = np.einsum("m,rmk->rk", w, values)
    effective = 1 / (w**2).sum()
    left = (values - mean[:, None]) * w[:, None]
    return Pooled(mean, np.einsum("rmi,rmj->rij", left, left) * effective / (effective - 1), effective - 1)


def alone(what: str, number: int) -> Callable[..., Pooled]:
    """The window's own measurements."""
    return lambda windows, now, rng: pool(draw(windows[now], what, number, rng), np.ones(number))


def longer(fade: float) -> Callable[..., Pooled]:
    """A third of the halves in each window, over a longer memory."""

    def way(windows: Sequence[Window], now: int, rng: np.random.Generator) -> Pooled:
        values = [draw(window, "halves", THIRD, rng) for window in windows[: now + 1]]
        return pool(np.concatenate(values, 1), _fading(now, fade))

    return way


def watched(fade: float) -> Callable[..., Pooled]:
    """The head's noise scale now, times a factor: the whole's noise scale over the head's, pooled over a longer memory.

    With the head's T_w, S_w in window w and the halves' t, s there, u = t/T_w, v = s/T_w and h = S_w/T_w are averaged
    over the memory. Then tr(Sigma) = T_now u and |G|^2 = S_now v/h. Nothing is divided by a |G|^2 of one window. The
    variances of all five means count, to first order; those of S_now and h as if they had no measurement in common.
    """

    def way(windows: Sequence[Window], now: int, rng: np.random.Generator) -> Pooled:
        heads = [pool(draw(window, "head", IN_STEP, rng), np.ones(IN_STEP)) for window in windows[: now + 1]]
        traces = np.stack([head.mean[:, 0] for head in heads], 1)  # T_w
        units = np.concatenate([draw(window, "halves", THIRD, rng) for window in windows[: now + 1]], 1)
        factor = pool(units / np.repeat(traces, THIRD, 1)[..., None], _fading(now, fade))
        w = _fading(now, fade)[::THIRD]
        w, head = w / w.sum(), heads[-1]
        h = np.stack([head.mean[:, 1] for head in heads], 1) / traces @ w
        var_h = np.stack([head.covariance[:, 1, 1] for head in heads], 1) / traces**2 @ w**2
        now_by_h = np.stack([head.mean[:, 0], head.mean[:, 1] / h], 1)  # T_now, S_now/h
        kept_by_h = factor.mean / np.stack([np.ones_like(h), h], 1)  # u, v/h
        covariance = factor.covariance * _square(now_by_h) + head.covariance * _square(kept_by_h)
        covariance[:, 1, 1] += (kept_by_h[:, 1] * now_by_h[:, 1]) ** 2 * var_h
        return Pooled(factor.mean * now_by_h, covariance, factor.degrees)

    return way


def watched_by_window(fade: float) -> Callable[..., Pooled]:
    """Halves carried from their window to this one by what the head has changed since.

    tr(Sigma) = T_now mean(t/T_w) and |G|^2 = S_now mean(s/S_w). Each window counts alike, whatever the head's noise
    scale was there, but S_w has to be resolved in each.
    """

    def way(windows: Sequence[Window], now: int, rng: np.random.Generator) -> Pooled:
        units = []
        for window in windows[: now + 1]:
            head = pool(draw(window, "head", IN_STEP, rng), np.ones(IN_STEP))
            units.append(draw(window, "halves", THIRD, rng) / head.mean[:, None])
        factor = pool(np.concatenate(units, 1), _fading(now, fade))
        covariance = factor.covariance * _square(head.mean) + head.covariance * _square(factor.mean)
        return Pooled(factor.mean * head.mean, covariance, factor.degrees)

    return way


def _square(rows: np.ndarray) -> np.ndarray:
    return rows[:, :, None] * rows[:, None]


def _fading(now: int, fade: float) -> np.ndarray:
    return np.repeat(np.exp(-np.arange(now, -1, -1) / fade), THIRD)


WAYS: dict[str, Callable[..., Pooled]] = {
    "halves": alone("halves", FULL),
    "halves, a third": alone("halves", THIRD),
    "a third, kept .1": longer(SHORT),
    "a third, kept .3": longer(LONG),
    "watched head, kept .1": watched(SHORT),
    "watched head, kept .3": watched(LONG),
    "watched head by window, kept .1": watched_by_window(SHORT),
    "watched head by window, kept .3": watched_by_window(LONG),
    "step and next batch, a third": alone("next_batch", THIRD),
}
KEEPING = [name for name in WAYS if "kept" in name]


def judged(
    windows: Sequence[Window], before: Sequence[Window], ways: Sequence[str], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """How far each way is from the truth of its window, over the later windows of a run.

    Args:
        windows: the windows that are judged.
        before: what was measured in the windows that lie before, the same or of another batch size.
        ways: names from `WAYS`.
        rng: draws the measurements.

    Returns:
        For each way: `mean`, estimate over truth in the geometric mean of windows, pooled over repetitions; `off`, the
        same in the window where it is furthest from 1, both left out where such an estimate is negative; `error`, the
        root mean square of t/T - s/S, the relative error of tr(Sigma) less that of |G|^2, which is that of the noise
        scale to first order; `covered`, the share of intervals that hold the truth.
    """
    found: dict[str, dict[str, float]] = {}
    for name in ways:
        ratios, errors, covered = [], [], []
        for now in range(LATER, len(windows)):
            true, pooled = truth(windows[now]), WAYS[name]([*before[:now], windows[now]], now, rng)
            relative = pooled.mean / true
            ratios.append(relative[:, 0].mean() / relative[:, 1].mean())
            errors.append(((relative[:, 0] - relative[:, 1]) ** 2).mean())
            t = student_t(CONFIDENCE, pooled.degrees)
            for mean, covariance in zip(pooled.mean, pooled.covariance, strict=True):
                low, high = fieller(float(mean[0]), float(mean[1]), covariance, t)
                covered.append(low <= true[0] / true[1] <= high)
        found[name] = {"error": float(np.sqrt(np.mean(errors))), "covered": float(np.mean(covered))}
        if min(ratios) > 0:
            logs = np.log(ratios)
            found[name] |= {"mean": float(np.exp(logs.mean())), "off": float(np.exp(logs[np.abs(logs).argmax()]))}
    return found


def explained(moment: Moment) -> float:
    """R^2: the share of the variance of t/T - s/S by halves that the head's numbers of the same batch explain.

    Measuring the head at every step and halves at a third of them is as good as three times the halves, within one
    window and with nothing kept, if R^2 is at least 2/3 (double sampling, Cochran 1977, eq. 12.51).
    """
    error = moment.halves[:, 0] / moment.true[0] - moment.halves[:, 1] / moment.true[1]
    beside = np.column_stack([np.ones(len(error)), moment.head / np.abs(moment.head).mean(0)])
    left = error - beside @ np.linalg.lstsq(beside, error, rcond=None)[0]
    return float(1 - left.var() / error.var())
