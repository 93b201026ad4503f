"""The learning rate's factor rises gradually, and the rate only so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .learning_rate import LONGEST, RISE

# A group's learning rate, and what a scheduler of torch's says of its peak.
PEAKS = ("lr", "max_lr", "initial_lr")
READ = (float, int, np.number)  # numbers.Real would be asked by calls in Python, at every step


class GradualRise:
    """Limits the factor of the learning rate in the steps of an optimizer that bears no rate of any size, as SGD.

    The rate is raised to at most a multiple of its schedule's largest, and the factor by `RISE` a step.

    Example: the schedule's largest rate is 0.1, the multiple 2, and the factor by its rule 8. At a rate of 0.1 the
    factor may become 2. It is 1.02, 1.02^2, 1.02^3, ... until it gets there, in 36 steps. Where the schedule has come
    down to 0.05 there is room for 4, and below 0.025 for all of it.

    Attributes:
        largest_lr: the largest learning rate of the base batch, so far or as its scheduler says; 0 where no step was
            limited.
        reached: the factor of the latest step that was limited; None where none was.
    """

    def __init__(self) -> None:
        self.largest_lr = 0.0
        self.reached: float | None = None

    def begin_anew(self, largest_lr: float = 0.0, reached: float | None = None) -> None:
        """Go on from another run's values, or from none."""
        self.largest_lr, self.reached = largest_lr, reached

    def limited(self, groups: Sequence[Mapping[str, Any]], lr_factor: float, longest: float) -> float:
        """The factor that a step may have.

        A learning rate that is a tensor is not limited, because reading it would wait for the device.

        Args:
            groups: the hyperparameters of the base batch.
            lr_factor: the factor by its rule.
            longest: the multiple of the schedule's largest rate.
        """
        now = 0.0
        for group in groups:
            for name in PEAKS:
                rate = group.get(name, 0.0)
                if isinstance(rate, READ):
                    if rate > self.largest_lr:
                        self.largest_lr = float(rate)
                    if name == "lr" and rate > now:
                        now = float(rate)
        if lr_factor > 1:
            if now > 0:
                lr_factor = max(1.0, min(lr_factor, longest * self.largest_lr / now))
            before = longest / LONGEST if self.reached is None else self.reached  # the start's is there at once
            lr_factor = min(lr_factor, RISE * max(1.0, before))
        self.reached = lr_factor
        return lr_factor
