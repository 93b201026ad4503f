"""The run that Lightning would make without adaptbs: its batches and optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..decision import fixed_batches


@dataclass(frozen=True)
class StockRun:
    """A run of fixed batches, numbered from 1 in each epoch.

    Attributes:
        start: samples of a batch, on all ranks together.
        epoch_samples: samples of an epoch.
        accumulation: batches of an optimizer step. At an epoch's end Lightning makes a step of fewer batches, too.
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

    def check(self, accumulation: int) -> None:
        """Raise ValueError if the Trainer accumulates other than planned, as where a callback changes it on the way."""
        if accumulation != self.accumulation:
            raise ValueError(
                f"accumulate_grad_batches={accumulation}: the fit began with {self.accumulation}, by which its steps "
                "are counted. Leave it as it is, as the batch grows by itself, or leave AdaptiveBatchSize out of "
                "callbacks="
            )

    def batches(self, position: float) -> int:
        """Batches delivered after `position` samples of an epoch."""
        return fixed_batches(position, self.start, self.epoch_samples, self.epoch_batches)

    def steps(self, before: int, after: int, frequency: int = 1) -> int:
        """Optimizer steps made by the batches after `before`, up to and with `after`.

        Args:
            before, after: numbers of batches.
            frequency: count only steps at batches whose number is a multiple of this, as for a scheduler's `frequency`.
        """
        both = math.lcm(self.accumulation, frequency)
        ends = before < self.epoch_batches <= after and self.epoch_batches % frequency == 0
        return after // both - before // both + (ends and self.epoch_batches % both != 0)

    def epochs(self, max_epochs: int, max_steps: int) -> float | None:
        """Length of the run of a Trainer with these limits, epochs; None if it has no end. -1 stands for no limit."""
        by_steps = math.inf
        if max_steps != -1:
            whole, steps = divmod(max_steps, self.epoch_steps)
            by_steps = whole + self.samples_of(steps) / self.epoch_samples
        length = min(math.inf if max_epochs == -1 else max_epochs, by_steps)
        return None if length == math.inf else length

    def samples_of(self, steps: int) -> int:
        """Samples of the first `steps` steps of an epoch."""
        return min(steps * self.accumulation * self.start, self.epoch_samples)


def last_multiple(every: int, before: int, after: int) -> int | None:
    """The largest multiple of `every` above `before` and up to `after`; None if there is none."""
    found = after // every * every
    return found if found > before else None
