"""The run that Lightning would make without adaptbs: its steps, and when it validates, while batches grow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..decision import fixed_batches


@dataclass(frozen=True)
class StockRun:
    """A run of fixed batches. It counts them within an epoch, from 1.

    Attributes:
        start: samples of a batch, of all ranks together.
        epoch_samples: samples of an epoch.
        accumulation: batches of an optimizer step. Lightning makes a step of what an epoch's end leaves of one, too.
    """

    start: int
    epoch_samples: int
    accumulation: int = 1

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.epoch_samples // self.start)

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.epoch_batches // self.accumulation)

    def batches(self, position: float) -> int:
        """Batches delivered after so many samples of an epoch."""
        return fixed_batches(position, self.start, self.epoch_samples, self.epoch_batches)

    def steps(self, before: int, after: int, frequency: int = 1) -> int:
        """Optimizer steps made by the batches after `before`, up to and with `after`.

        Args:
            before, after: numbers of batches.
            frequency: only those at a batch whose number is a multiple of this count, as of a scheduler's `frequency`.
        """
        both = math.lcm(self.accumulation, frequency)
        ends = before < self.epoch_batches <= after and self.epoch_batches % frequency == 0
        return after // both - before // both + (ends and self.epoch_batches % both != 0)

    def epochs(self, max_epochs: int, max_steps: int) -> float | None:
        """Length of the run that a Trainer with these limits makes, epochs; -1 stands for no limit. None: no end."""
        by_steps = math.inf
        if max_steps != -1:
            whole, steps = divmod(max_steps, self.epoch_steps)
            by_steps = whole + self.samples_of(steps) / self.epoch_samples
        length = min(math.inf if max_epochs == -1 else max_epochs, by_steps)
        return None if length == math.inf else length

    def samples_of(self, steps: int) -> int:
        """Samples of the first so many steps of an epoch."""
        return min(steps * self.accumulation * self.start, self.epoch_samples)


def last_multiple(every: int, before: int, after: int) -> int | None:
    """The largest multiple of `every` above `before` and up to `after`; None where there is none."""
    found = after // every * every
    return found if found > before else None
