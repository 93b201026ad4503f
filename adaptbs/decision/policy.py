"""The growth rule: the next batch size from a noise scale and a step time. Pure functions, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..timing import StepTime, Time
from ..types import COUPLED, ENOUGH, Decision, NoiseScale, Target

# Efficiency is progress per sample relative to the reference batch. The batch must keep at least the floor below.
# With a fixed number of samples, every loss of efficiency is a loss of quality.
FLOOR_OF_EPOCHS = 0.8
# With a budget of progress, a loss of efficiency costs only time. But a step that is too long does most harm while the
# learning rate is near its peak, so the floor falls evenly over the run, from the first value to the last.
FIRST_FLOOR, LAST_FLOOR = 0.7, 0.4
# SGD's floor is lower by this much, because its critical batch is estimated low. Adam lost quality with batches that
# much larger.
BELOW_FOR_SGD = 0.2
# The critical batch over B_simple. At the critical batch a sample brings half of what it brings at a tiny batch.
# B_simple assumes that all directions are equally curved (McCandlish et al. 2018, section 2.2). Adam evens curvatures
# out, and its critical batch is the larger (Zhang et al. 2019, arXiv:1907.04164). Both values were chosen on the tasks
# for choosing in benchmarks/quality/untuned; docs/benchmarks.md has them beside others.
CRITICAL_OF_ADAPTIVE, CRITICAL_OF_SGD = 3, 1.5
# Progress is counted by a critical batch of this share of it. To count too much ends the run early, which costs
# quality. To count too little costs samples, and where larger batches pay, these are cheap. By half of it a long run of
# AdamW still lost a little.
COUNTED = 1 / 3
# The largest batch to which hyperparameters are known to transfer, over R and over the base batch. The larger of the
# two counts. Beyond it even large fixed batches cost quality (MovieLens at 4096 in docs/benchmarks.md).
LARGEST_FACTOR, LARGEST_OVER_BASE = 32, 8
EARLY = 0.1  # first share of the run, in which the batch stays small, see `early_limit`
WARM_UP = 0.25  # the same, while the estimate has no upper limit
EARLY_FACTOR = 2  # the largest batch meanwhile, over R
# SGD's largest batch over R where no schedule brings its learning rate down, see `largest_at_constant_rate`.
CONSTANT_RATE = 4
# First share of the run, in which a batch that proves too large for the noise may still be taken back. That of a start
# shows at once. That of a growth on a plateau shows only when the model has left it and the measurements made there are
# outweighed, which at a low learning rate takes a third of the run. Later B_simple swings more than it falls. A batch
# that proves slower than a smaller one may be taken back at any time, since nothing is gained by it.
SHRINK_UNTIL = 0.4
PACE = 2  # one decision at most multiplies or divides the batch by this
STEP_TIME = "step time"  # the reason where a larger batch would take longer for the same progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a decision depends on.

    Attributes:
        noise_scale: the current estimate. None if nothing has been measured.
        batch_size: the current batch size, samples.
        reference: R, the batch whose quality the run must keep, samples.
        progress: share of the run done, 0..1.
        step_time: seconds of a step by batch size. None until two sizes have been run.
        critical: the critical batch over B_simple.
        counted: the critical batch by which progress is counted, over B_simple. None: `critical`.
        early_limit: the largest batch that may be chosen so early in the run, samples.
        floor: the efficiency that the batch must keep.
        required: the mean efficiency, as it is counted, that the rest of the run needs to end within its limit of
            samples. None with a budget of epochs.
        max_batch_size: the user's limit, samples.
        coupled: True if the loss couples samples, so that another batch size would change the loss.
        new_measurements: measurements since the previous decision.
    """

    noise_scale: NoiseScale | None
    batch_size: int
    reference: int
    progress: float
    step_time: Time | None
    max_batch_size: int
    critical: float = CRITICAL_OF_SGD
    counted: float | None = None
    early_limit: float = math.inf
    floor: float = FLOOR_OF_EPOCHS
    required: float | None = None
    coupled: bool = False
    new_measurements: int = ENOUGH


def reference_batch_size(base_batch_size: int) -> int:
    """R, the batch whose quality the run must keep, samples. It is the base batch, but 64 at most."""
    return min(base_batch_size, 64)


def largest_batch_size(base_batch_size: int) -> int:
    """The largest batch to which hyperparameters stated for the base batch are known to transfer, samples."""
    return max(LARGEST_FACTOR * reference_batch_size(base_batch_size), LARGEST_OVER_BASE * base_batch_size)


def largest_at_constant_rate(base_batch_size: int) -> int:
    """The largest batch of SGD where no schedule brings the learning rate down, samples.

    The longest stable step does not grow with the batch. A schedule that decays heals what steps too long have done; at
    a constant rate they go on to the end of the run.
    """
    return max(CONSTANT_RATE * reference_batch_size(base_batch_size), base_batch_size)


def critical_over_simple(adaptive: bool) -> float:
    """The critical batch (phi in this module) over B_simple.

    Args:
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
    """
    return CRITICAL_OF_ADAPTIVE if adaptive else CRITICAL_OF_SGD


def counted_over_simple(adaptive: bool) -> float:
    """The critical batch by which progress is counted, over B_simple."""
    return COUNTED * critical_over_simple(adaptive)


def efficiency(phi: float, batch_size: float, reference: float) -> float:
    """(phi + R)/(phi + B), the progress per sample at B relative to R (Pollux, Qiao et al. 2021, arXiv:2008.12260)."""
    return (phi + reference) / (phi + batch_size)


def largest_efficient(phi: float, reference: float, floor: float) -> float:
    """The batch size at which `efficiency` has fallen to `floor`, samples."""
    return (phi * (1 - floor) + reference) / floor


def efficiency_floor(progress: float, by_progress: bool, adaptive: bool) -> float:
    """The efficiency that the batch must keep.

    Args:
        progress: share of the run done, 0..1.
        by_progress: True with a budget of progress. With one of epochs the number of samples is fixed.
        adaptive: True if the optimizer divides its step by the gradient's size, as Adam does.
    """
    if not by_progress:
        return FLOOR_OF_EPOCHS
    floor = FIRST_FLOOR + (LAST_FLOOR - FIRST_FLOOR) * min(progress, 1.0)
    return floor if adaptive else floor - BELOW_FOR_SGD


def early_limit(progress: float, base_batch_size: int, clear: bool = True) -> float:
    """The largest batch that is safe so early in the run, samples. inf if the start of the run sets no limit.

    Many models begin on a plateau, where |G|^2 is nearly 0 and B_simple is large. A learning rate that follows the
    batch does harm once the model has left the plateau. A schedule that warms up brings the largest rates later still,
    so until then only a clear estimate lets the batch grow further.

    Args:
        progress: share of the run done, 0..1.
        base_batch_size: B0, samples.
        clear: True if the estimate has an upper limit.
    """
    if progress >= (EARLY if clear else WARM_UP):
        return math.inf
    return max(EARLY_FACTOR * reference_batch_size(base_batch_size), base_batch_size)


def goodput_optimum(phi: float, step_time: Time | None) -> float:
    """The batch size with the most progress per second: argmax of B/t(B) * 1/(phi + B), samples.

    It is sqrt(a phi/b) if t(B) = a + b B (Pollux, Qiao et al. 2021, arXiv:2008.12260). The goodput is symmetric about
    it in log B, so the power of 2 nearest to it is the best one. If t(B) is a table, the best power of 2 is looked up.
    inf if the step time sets no bound.
    """
    if step_time is None:
        return math.inf
    if isinstance(step_time, StepTime):
        return math.sqrt(step_time.a * phi / step_time.b) if step_time.b else math.inf
    powers = [float(1 << i) for i in range(step_time.sizes[-1].bit_length() + 1)]  # the last is above all sizes run
    return max(powers, key=lambda size: size / step_time(size) / (phi + size))


def nearest_power_of_2(size: float) -> int:
    """The power of 2 nearest to `size` by ratio, at least 1."""
    return 2 ** max(0, round(math.log2(size))) if size > 0 else 1


def goodput(now: Situation) -> tuple[int, str]:
    """The power of 2 with the most progress per second at the noise scale and above the efficiency floor."""
    assert now.noise_scale is not None
    simple = now.noise_scale.believed
    phi, counted = now.critical * simple, (now.counted or now.critical) * simple
    fastest = goodput_optimum(counted, now.step_time)
    ceiling = largest_efficient(phi, now.reference, now.floor)
    if now.required:
        ceiling = min(ceiling, largest_efficient(counted, now.reference, now.required))
    size = nearest_power_of_2(min(fastest, ceiling))
    while size > max(ceiling, 1):  # rounding up costs no time, but must not take the efficiency below its floor
        size //= 2
    return size, STEP_TIME if fastest < ceiling else "noise scale"


def nearest_to_noise_scale(now: Situation) -> tuple[int, str]:
    """The power of 2 nearest to the noise scale."""
    assert now.noise_scale is not None
    return nearest_power_of_2(now.noise_scale.believed), "noise scale"


TARGETS = {"goodput": goodput, "noise_scale": nearest_to_noise_scale}


def why_not_known(noise_scale: NoiseScale | None) -> str | None:
    """Why no decision may be based on this estimate; None if one may."""
    if noise_scale is None or noise_scale.measurements < ENOUGH:
        return "few measurements"
    return "unresolved" if noise_scale.cautious <= 0 else None


def decide(now: Situation, target: str | Target) -> Decision:
    """The next batch size, and the reason for it.

    Every target is limited by the user's `max_batch_size`. The built-in targets are also limited by the pace, and they
    hold the batch while the noise scale is not known well enough.

    Args:
        now: all that the decision depends on.
        target: the name of a built-in target, or the user's function.

    Raises:
        ValueError: a target function returned no finite number of at least 1.
    """
    if callable(target):
        wanted = target(now.noise_scale, now.batch_size, min(now.progress, 1.0))  # above 1 where no length is known
        return _capped(_checked(wanted), "target", now)
    if now.coupled:
        return _capped(now.batch_size, COUPLED, now)
    if (unknown := why_not_known(now.noise_scale)) is not None:
        is_low = unknown == "unresolved" and now.noise_scale is not None and now.noise_scale.high <= now.batch_size
        return _capped(now.batch_size, "noise scale" if is_low else unknown, now)
    if not now.new_measurements:
        # The same measurements are not used for two decisions, because the run has moved on since. B_simple falls
        # tenfold when a model leaves a plateau, and a batch that grew further on the old value would spoil the run.
        return _capped(now.batch_size, "nothing new", now)
    size, reason = TARGETS[target](now)
    if size > now.early_limit:
        size, reason = int(now.early_limit), "early"
    if size < now.batch_size:
        is_slower = reason == STEP_TIME and PACE * size <= now.batch_size  # a little less would be no faster
        may_shrink = now.progress <= SHRINK_UNTIL or is_slower
        size = max(size, min(now.reference, now.batch_size)) if may_shrink else now.batch_size
    # Growth up to the reference batch needs no pace, because the hyperparameters are stated for at least that batch.
    slowest, quickest = -(-now.batch_size // PACE), max(PACE * now.batch_size, now.reference)
    if not slowest <= size <= quickest:
        size, reason = min(max(size, slowest), quickest), "pace"
    return _capped(size, reason, now)


def _capped(size: int, reason: str, now: Situation) -> Decision:
    if size > now.max_batch_size:
        size, reason = now.max_batch_size, "max_batch_size"
    return Decision(size, reason)


def _checked(wanted: Any) -> int:
    is_real = isinstance(wanted, Real)  # NumPy's numbers are too
    if not is_real or not 1 <= wanted < math.inf:
        raise ValueError(
            f"target= returned {wanted!r}: it must return the wanted batch size, a finite number of at least 1. "
            "Return the batch_size that it was given to keep the size."
        )
    return int(wanted)
