"""Counts the batches that are still to come in an epoch."""

from __future__ import annotations

import math

from ..decision import ROUNDING
from .controller import Controller


def batches_left(controller: Controller, in_pass: tuple[int, int], per_step: int, *, ends_step: bool) -> int:
    """Batches still to come in this epoch, at the size of now.

    Args:
        controller: of the run.
        in_pass: batches that are left of the pass under way, and their samples.
        per_step: batches of an optimizer step, on each rank.
        ends_step: True if the current batch ends an optimizer step.
    """
    progress, (batches, samples) = controller.progress_tracker, in_pass
    if not progress.by_shares:
        return batches
    if progress.epoch_complete:  # it goes on to the end of an optimizer step
        return 0 if ends_step else min(batches, 1)
    size = controller.batch_size
    needed = progress.samples_left(controller.sample_efficiencies[size])
    beyond = needed - samples
    if beyond < -ROUNDING:
        return min(math.ceil(needed * per_step / size - ROUNDING) or 1, max(batches, 1))
    return batches + math.ceil(beyond * per_step / size - ROUNDING) or 1
