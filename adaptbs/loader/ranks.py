"""Measures the steps of a loop on several ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..gradients import FEW_FOR_BATCH_NORM, FEWEST_EXAMINED, Coupling, RankGradients, ShardedGradients, is_sharded
from ..model import BatchLoss, has_batch_norm
from ..ranks import Ranks
from ..run import TrainingRun
from ..types import COUPLED, Measurement
from .loop_facts import GradientsReady


class RankMeter:
    """Measures steps by what each rank's gradient says against the average of all.

    Args:
        model: the model that the loop trains.
        optimizer: makes the loop's steps.
        batch_loss: looked at on the first batches measured, for whether it is a mean over samples; None if not known.
        ranks: connected.
        passes: backward passes of an optimizer step.
        ready: where an adapter says when gradients are ready; None: they are when the optimizer steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batch_loss: BatchLoss | None,
        ranks: Ranks,
        passes: int,
        ready: GradientsReady | None = None,
    ) -> None:
        # The wrapped model's own forward pass would wait for the other ranks.
        self._inner = model.module if isinstance(model, DistributedDataParallel) else model
        self.ranks, self._optimizer, self._ready = ranks, optimizer, ready
        self.gradients: RankGradients | ShardedGradients
        self.coupling: Coupling | None = None
        if is_sharded(model):  # its forward pass waits inside, too, so its loss is not looked at
            self.gradients = ShardedGradients(model, ranks)
        else:
            self.gradients = RankGradients(model, ranks, passes)
            self.coupling = Coupling(self._inner, batch_loss) if batch_loss is not None else None
        self._split_given = batch_loss is not None and batch_loss.split_given
        self._sums = batch_loss is not None and batch_loss.reduction == "sum"

    def measurement(self, samples: int, length: int) -> Measurement:
        """The measurement of a step; collective.

        Args:
            samples: this rank's samples of the step.
            length: this rank's samples of its last batch.
        """
        if isinstance(self.gradients, ShardedGradients):
            norms = self.gradients.norms(samples, passes=samples // length)
        else:
            norms = self.gradients.norms(samples)
        norms = norms.divided_by(samples**2) if self._sums else norms
        return Measurement(norms, "ranks", "each rank's gradient against the average", self._caveat(length))

    def _caveat(self, length: int) -> str | None:
        if self.coupling is not None and self.coupling.found:
            return COUPLED
        return f"BatchNorm over {length}" if length < FEW_FOR_BATCH_NORM and has_batch_norm(self._inner) else None

    def when_ready(self, listener: Callable[..., None]) -> Any:
        """Call this when the gradients of a step are ready, until `remove()` of what is returned."""
        if self._ready is not None:
            return self._ready.listen(listener)
        return self._optimizer.register_step_pre_hook(listener)

    def said(self, samples: int) -> int | None:
        """Samples of a batch that the user cuts; None where its layout tells them."""
        return samples if self._split_given else None

    def agreed(self, deviation: float) -> float:
        """The mean of what all ranks found, nan where one found nothing; collective."""
        everybody = [said for (said,) in self.ranks.gather([deviation])]
        return math.fsum(everybody) / len(everybody) if all(map(math.isfinite, everybody)) else math.nan


class RankStep:
    """The optimizer step that a loop is at, watched from its first backward pass to the optimizer's step.

    Just before that step ranks exchange what they saw, because all of them make it or none does. Each step is watched
    by all: the coin is a pseudo-random one, and what its rate depends on has been agreed.

    Args:
        meter: measures the steps that the controller's coin chooses.
        run: the training run.
    """

    def __init__(self, meter: RankMeter, run: TrainingRun) -> None:
        self._meter, self._run, self._tracker = meter, run, run.tracker
        # Where an epoch is gone on with in the middle of a step, the next step is the first that can be measured.
        self._ended = self._tracker.current.ends_step or not self._tracker.under_way
        self._at = -1
        self._lengths: list[int] = []  # of this rank's batches in the step
        self._watched = False
        self._hook: Any = None

    def begin(self, batch: Any) -> None:
        """The loop is given a batch. The one that it works on may still be the one before."""
        controller, current = self._run.controller, self._tracker.current
        if controller.progress_tracker.samples == self._at:
            return  # it looks ahead, and works on the same one as before
        begins, self._at = self._ended, controller.progress_tracker.samples
        self._ended = current.ends_step
        own = current.num_samples // self._meter.ranks.world_size
        self._lengths = [own] if begins else [*self._lengths, own]
        if not begins:
            return
        self.end()
        if controller.measure_next_step():
            # Not charged: the first looks would be taken for what a measurement costs, which is much less.
            coupling = self._meter.coupling
            if coupling and self._tracker.latest_fetched.num_samples >= FEWEST_EXAMINED * self._meter.ranks.world_size:
                coupling.look(batch, agreed=self._meter.agreed, samples=self._meter.said(own))
            self._meter.gradients.arm(lambda: self._ended)
            self._watched = True
            self._hook = self._meter.when_ready(self._step)

    def _step(self, *_: Any) -> None:
        """The gradients of a step are ready."""
        # What is left of a step at an epoch's end is no whole one; and a mean of means is no mean where the batches
        # that it accumulates are not of one length.
        if self._watched and self._ended and len(set(self._lengths)) == 1:
            controller = self._run.controller
            with controller.measuring(self._tracker.latest_fetched.num_samples):
                length = self._tracker.current.num_samples // self._meter.ranks.world_size
                controller.measured(self._meter.measurement(sum(self._lengths), length))
        self._watched = False  # a hook cannot be removed from within
        self._meter.gradients.disarm()

    def end(self) -> None:
        """Watch this step no longer."""
        self._watched = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._meter.gradients.disarm()
