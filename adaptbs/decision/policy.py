"""From a noise scale and a step time to the next batch size. Pure functions, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from ..timing import StepTime, Time
from ..types import COUPLED, ENOUGH, Decision, NoiseScale, Target

# The efficiency, progress per sample relative to the reference batch, that the batch must keep:
FLOOR_OF_EPOCHS = 0.8  # with a fixed number of samples, each less efficient is quality lost;
FIRST_FLOOR, LAST_FLOOR = 0.7, 0.4  # where progress is what counts, it is only time; but a step too long does most harm
# while the learning rate is near its peak, so the floor falls evenly over the run;
BELOW_FOR_SGD = 0.2  # less for SGD, whose critical batch is put low: Adam with that much larger batches came to harm
# The critical batch, at which a sample brings half of what it brings at a tiny one, over the simple noise scale, which
# takes all directions to be equally curved (McCandlish et al. 2018, section 2.2). Adam evens curvatures out, and its
# critical batch is the larger (Zhang et al. 2019, arXiv:1907.04164). Both were set on runs that no table
# shows; what other values do is among the ablations of docs/benchmarks.md.
CRITICAL_OF_ADAPTIVE, CRITICAL_OF_SGD = 4, 2.5
# The batch up to which hyperparameters are known to transfer, over R, and over what they are stated for where that is
# more than R: beyond it even large fixed batches cost quality (MovieLens at 4096 in docs/benchmarks.md).
LARGEST_FACTOR, LARGEST_OVER_BASE = 32, 8
EARLY = 0.1  # share of the run within which SGD's batch stays small, see `early_limit`
SHRINK_UNTIL = 0.2  # share of the run within which a start that proves too large may be taken back
PACE = 2  # the batch at most doubles, or halves, in one decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a decision is made from.

    Attributes:
        noise_scale: the current estimate, None where nothing has been measured.
        batch_size: now, samples.
        reference: R, the batch whose quality the run must keep, samples.
        progress: share of the run done, 0..1.
        step_time: seconds of a step by batch size, None until two sizes have been run.
        critical: the critical batch over B_simple.
        early_limit: what is asked for at most so early in the run, samples.
        floor: the efficiency that the batch must keep.
        max_batch_size: the user's limit, samples.
        coupled: whether the loss couples samples, so that another batch size is another loss.
        new_measurements: measurements since the decision before.
    """

    noise_scale: NoiseScale | None
    batch_size: int
    reference: int
    progress: float
    step_time: Time | None
    max_batch_size: int
    critical: float = CRITICAL_OF_SGD
    early_limit: float = math.inf
    floor: float = FLOOR_OF_EPOCHS
    coupled: bool = False
    new_measurements: int = ENOUGH


def reference_batch_size(base_batch_size: int) -> int:
    """R, the batch whose quality the run must keep: what its hyperparameters are stated for, 64 samples at most."""
    return min(base_batch_size, 64)


def largest_batch_size(base_batch_size: int) -> int:
    """The batch up to which hyperparameters stated for this one are known to transfer, samples."""
    return max(LARGEST_FACTOR * reference_batch_size(base_batch_size), LARGEST_OVER_BASE * base_batch_size)


def critical_over_simple(adaptive: bool) -> float:
    """The critical batch (phi in what follows) over B_simple, by whether the optimizer divides by gradients' size."""
    return CRITICAL_OF_ADAPTIVE if adaptive else CRITICAL_OF_SGD


def efficiency(phi: float, batch_size: float, reference: float) -> float:
    """Progress per sample at `batch_size`, relative to `reference` (Pollux, Qiao et al. 2021, arXiv:2008.12260)."""
    return (phi + reference) / (phi + batch_size)


def largest_efficient(phi: float, reference: float, floor: float) -> float:
    """The batch size at which `efficiency` has fallen to `floor`, samples."""
    return (phi * (1 - floor) + reference) / floor


def efficiency_floor(progress: float, required: float | None, adaptive: bool) -> float:
    """The efficiency that the batch must keep.

    Args:
        progress: share of the run done, 0..1.
        required: what a sample must be worth on average for the run to end within its limit; None where samples count.
        adaptive: whether the optimizer divides by gradients' size.
    """
    if required is None:
        return FLOOR_OF_EPOCHS
    floor = FIRST_FLOOR + (LAST_FLOOR - FIRST_FLOOR) * min(progress, 1.0)
    return max(floor if adaptive else floor - BELOW_FOR_SGD, required)


def early_limit(progress: float, base_batch_size: int, adaptive: bool) -> float:
    """What the batch may come to at most so early in the run, samples; inf where nothing speaks against more.

    Many a model begins on a plateau, where |G|^2 is next to nothing and B_simple large. SGD's learning rate follows the
    batch nearly in full, and off the plateau that much of it does harm.
    """
    if adaptive or progress >= EARLY:
        return math.inf
    return max(PACE * reference_batch_size(base_batch_size), base_batch_size)


def goodput_optimum(phi: float, step_time: Time | None) -> float:
    """argmax of B/t(B) * 1/(phi + B), samples; inf where the step time sets no bound.

    That is sqrt(a phi/b) where t(B) = a + b B (Pollux, Qiao et al. 2021, arXiv:2008.12260), and symmetric about it in
    log B, so the power of 2 nearest to it is the best one. In a table the best power of 2 is looked up.
    """
    if step_time is None:
        return math.inf
    if isinstance(step_time, StepTime):
        return math.sqrt(step_time.a * phi / step_time.b) if step_time.b else math.inf
    powers = [float(1 << i) for i in range(step_time.sizes[-1].bit_length() + 1)]  # the largest has not been run
    return max(powers, key=lambda size: size / step_time(size) / (phi + size))


def nearest_power_of_2(size: float) -> int:
    """Nearest in ratio: 1 for anything below."""
    return 2 ** max(0, round(math.log2(size))) if size > 0 else 1


def goodput(now: Situation) -> tuple[int, str]:
    """The most progress per second at the cautious noise scale, without falling below the efficiency floor."""
    assert now.noise_scale is not None
    phi = now.critical * now.noise_scale.cautious
    fastest = goodput_optimum(phi, now.step_time)
    ceiling = largest_efficient(phi, now.reference, now.floor)
    size = nearest_power_of_2(min(fastest, ceiling))
    while size > max(ceiling, 1):  # rounding up is free in time, but must not break the promise of the floor
        size //= 2
    return size, "step time" if fastest < ceiling else "noise scale"


def noise_scale(now: Situation) -> tuple[int, str]:
    """The power of 2 nearest to the cautious noise scale."""
    assert now.noise_scale is not None
    return nearest_power_of_2(now.noise_scale.cautious), "noise scale"


TARGETS = {"goodput": goodput, "noise_scale": noise_scale}


def decide(now: Situation, target: str | Target) -> Decision:
    """The next batch size: the target's wish within the limits of pace (built-in targets) and user (all)."""
    if callable(target):
        wanted = target(now.noise_scale, now.batch_size, now.progress)
        return _capped(_checked(wanted), "target", now)
    if now.coupled:
        return _capped(now.batch_size, COUPLED, now)
    if now.noise_scale is None or now.noise_scale.measurements < ENOUGH:
        return _capped(now.batch_size, "few measurements", now)
    if now.noise_scale.cautious <= 0:
        return _capped(now.batch_size, "unresolved", now)
    if not now.new_measurements:
        # What has been acted on is not acted on again: the run has moved on since. While a model leaves a plateau
        # B_simple falls tenfold, and a batch that grew on by what it was there spoils the run.
        return _capped(now.batch_size, "nothing new", now)
    size, reason = TARGETS[target](now)
    if size > now.early_limit:
        size, reason = int(now.early_limit), "early"
    if size < now.batch_size:
        lowest = min(now.reference, now.batch_size) if now.progress <= SHRINK_UNTIL else now.batch_size
        size = max(size, lowest)
    # (what the hyperparameters are stated for is no experiment)
    slowest, quickest = -(-now.batch_size // PACE), max(PACE * now.batch_size, now.reference)
    if not slowest <= size <= quickest:
        size, reason = min(max(size, slowest), quickest), "pace"
    return _capped(size, reason, now)


def _capped(size: int, reason: str, now: Situation) -> Decision:
    if size > now.max_batch_size:
        size, reason = now.max_batch_size, "max_batch_size"
    return Decision(size, reason)


def _checked(wanted: object) -> int:
    if not isinstance(wanted, Real) or not math.isfinite(wanted) or wanted < 1:  # (NumPy's numbers are Real too)
        raise ValueError(
            f"target= returned {wanted!r}: it must return the wanted batch size, a finite number of at least 1. "
            "Return the batch_size it was given to keep the size as it is."
        )
    return int(float(wanted))
