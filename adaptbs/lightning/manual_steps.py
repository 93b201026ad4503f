"""The optimizer steps of a module in manual optimization, which makes them itself."""

from __future__ import annotations

from .plan import StockRun


class ManualSteps:
    """Steps of a module that makes one of every so many batches of an epoch, by `batch_idx`.

    Whether it makes one of what an epoch's end leaves as well, as by `trainer.is_last_batch`, shows at such an end.

    Args:
        plan: the stock run.
        batches: batches of a step.

    Attributes:
        batches: batches of a step.
        ends_with_step: True if an epoch ends with a step of fewer, where it leaves fewer. None: not known yet.
        within_batch: True while the module works on a batch.
    """

    def __init__(self, plan: StockRun, batches: int) -> None:
        self._run, self.batches = StockRun(plan.start, plan.epoch_samples, batches), batches
        self.ends_with_step: bool | None = None
        self.within_batch = False
        self._latest = 0  # number of the batch of the latest step, from 1; 0 in an epoch without one

    def know(self, *, ends_with_step: bool) -> None:
        """Go on with what was known of a saved fit."""
        self.ends_with_step = ends_with_step

    def begin_epoch(self) -> None:
        self._latest = 0

    def owed(self, before: int, after: int) -> int:
        """Begin a batch. Return the steps that the stock run makes after `before`, up to and with batch `after`."""
        self.within_batch = True
        if self.ends_with_step:
            return self._run.steps(before, after)
        return after // self.batches - before // self.batches

    def end_batch(self, number: int, *, made_step: bool, ends_epoch: bool) -> bool:
        """Record a batch. True if it shows now whether an epoch ends with a step of fewer batches.

        Args:
            number: number of the batch in its epoch, from 1.
            made_step: True if the module has made a step with it.
            ends_epoch: True if it is the last.
        """
        self.within_batch, left = False, number - self._latest
        shows = ends_epoch and self.ends_with_step is None and left < self.batches
        if shows:
            self.ends_with_step = made_step
        if made_step:
            self._latest = number
        return shows

    @property
    def of_end(self) -> int:
        """Steps that an epoch's end makes of fewer batches: 1 or 0."""
        return self.epoch_steps - self._run.epoch_batches // self.batches

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return self._run.epoch_steps if self.ends_with_step else self._run.epoch_batches // self.batches
