"""Batch sizes of big training: few large steps, of which planned ones may be brought forward or delayed."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from ..types import Decision, NoiseScale
from .policy import FLOOR_OF_EPOCHS, largest_efficient, why_not_known

PLANNED, EARLIEST, LATEST = "as the ramp plans", "as early as the ramp allows", "as late as the ramp allows"  # reasons


@dataclass(frozen=True, slots=True)
class Ramp:
    """The batch sizes that a run may have, and where each is planned to begin.

    Attributes:
        sizes: rising, samples of an optimizer step. The run starts with the first.
        starts: samples seen where each size is planned to begin, rising from 0. None: nothing is planned.
        shift: a size planned at s samples begins between s / shift and s * shift; at least 1.
    """

    sizes: tuple[int, ...]
    starts: tuple[float, ...] | None = None
    shift: float = 1.0

    def at(self, size: float) -> int:
        """Index of the largest size that is not above `size`; 0 if all are."""
        return max(bisect_right(self.sizes, size) - 1, 0)

    def planned(self, seen: float) -> int:
        """Index of the size that is planned there; the first if nothing is planned."""
        return bisect_right(self.starts, seen) - 1 if self.starts is not None else 0

    def earliest(self, seen: float) -> int:
        """Index of the largest size that may have begun there."""
        return self.planned(seen * self.shift) if self.starts is not None else len(self.sizes) - 1

    def latest(self, seen: float) -> int:
        """Index of the smallest size that the run may still have there."""
        return self.planned(seen / self.shift)


def geometric(first: int, last: int, growth: float, multiple: int) -> tuple[int, ...]:
    """The sizes first * growth^i up to `last`, rounded to multiples of `multiple`, samples; rising."""
    sizes, wanted = [first], first * growth
    while wanted <= last:
        rounded = round(wanted / multiple) * multiple
        if sizes[-1] < rounded <= last:
            sizes.append(rounded)
        wanted *= growth
    return tuple(sizes)


def next_on_ramp(
    ramp: Ramp,
    batch_size: int,
    seen: float,
    noise_scale: NoiseScale | None,
    new_measurements: int,
    critical: float,
) -> Decision:
    """The next batch size on a ramp, and the reason for it.

    The largest size counts whose samples bring at least `FLOOR_OF_EPOCHS` of what they bring at the ramp's first size.
    The batch follows the plan while the noise scale is not known well enough; without a plan it is held. It grows by
    one size at a time ahead of the plan, and never shrinks: the schedule of the learning rate knows no way back.

    Args:
        ramp: the sizes, and where they are planned.
        batch_size: the current size, one of the ramp's.
        seen: samples seen.
        noise_scale: the current estimate. None if nothing has been measured.
        new_measurements: measurements since the previous decision.
        critical: the critical batch size over B_simple.
    """
    here, planned = ramp.at(batch_size), ramp.planned(seen)
    unknown = why_not_known(noise_scale)
    if noise_scale is None or unknown is not None:
        held = unknown if ramp.starts is None and unknown is not None else PLANNED
        return Decision(ramp.sizes[max(here, planned)], held)
    ceiling = largest_efficient(critical * noise_scale.cautious, ramp.sizes[0], FLOOR_OF_EPOCHS)
    index, reason = ramp.at(ceiling), "noise scale"
    if index > ramp.earliest(seen):
        index, reason = ramp.earliest(seen), EARLIEST
    if index > max(here, planned) and not new_measurements:  # the same measurements are not used twice to grow
        index, reason = max(here, planned), "nothing new"
    if index > max(here + 1, planned):
        index, reason = max(here + 1, planned), "pace"
    if index < ramp.latest(seen):
        index, reason = ramp.latest(seen), LATEST
    return Decision(ramp.sizes[max(index, here)], reason)
