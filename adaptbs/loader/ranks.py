"""Measures a loop on several ranks: which of its steps, when, and what is to be said about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..gradients import FEW, FEWEST, Coupling, RankGradients
from ..model import BatchLoss, has_batch_norm
from ..ranks import Ranks
from ..run import Controller
from ..types import COUPLED, Measurement


class RankMeter:
    """Watches the steps that the controller's coin chooses, from their first backward pass to the optimizer's step.

    That step is where ranks exchange what they saw, because all of them make it or none does. Each step is watched by
    all: the coin is a pseudo-random one, and what its rate depends on has been agreed.

    Args:
        model: that the loop trains.
        optimizer: that makes its steps.
        batch_loss: looked at on the first batches measured, for whether it is a mean over samples.
        ranks: connected.
        passes: backward passes of an optimizer step.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, batch_loss: BatchLoss, ranks: Ranks, passes: int
    ) -> None:
        # (The wrapped model's own forward pass would wait for the other ranks.)
        self._inner = model.module if isinstance(model, DistributedDataParallel) else model
        self._optimizer, self._ranks = optimizer, ranks
        self._gradients = RankGradients(model, ranks, passes)
        self._coupling = Coupling(self._inner, batch_loss)
        self._sums = batch_loss.reduction == "sum"

    def around(self, delivered: Iterable[Any], controller: Controller) -> Iterator[Any]:
        """Pass an epoch's batches on."""
        step = _Step(self, controller)
        try:
            for batch in delivered:
                step.begin(batch)
                yield batch
        finally:
            step.end()


class _Step:
    """The optimizer step that the loop is at."""

    def __init__(self, measuring: RankMeter, controller: Controller) -> None:
        self._m, self._controller, self._delivery = measuring, controller, controller.delivery
        # Where an epoch is gone on with in the middle of a step, the next step is the first that can be measured.
        self._ended = self._delivery.in_hand.ends_step or not controller.run.under_way
        self._at = -1
        self._lengths: list[int] = []  # of this rank's batches in the step
        self._watched = False
        self._hook: Any = None

    def begin(self, batch: Any) -> None:
        """Take note of a batch that the loop is given; the one it works on may still be the one before."""
        if self._controller.run.samples == self._at:
            return  # (it looks ahead, and works on the same one as before)
        begins, self._at = self._ended, self._controller.run.samples
        self._ended = self._delivery.in_hand.ends_step
        own = self._delivery.in_hand.length // self._m._ranks.world_size
        self._lengths = [own] if begins else [*self._lengths, own]
        if not begins:
            return
        self.end()
        if self._controller.measure_next_step():
            # (Not charged: five looks would be taken for what a measurement costs, which is much less.)
            if self._delivery.fetched.length >= FEWEST * self._m._ranks.world_size:
                self._m._coupling.look(batch, agreed=self._agreed)
            self._m._gradients.arm(lambda: self._ended)
            self._watched = True
            self._hook = self._m._optimizer.register_step_pre_hook(self._step)

    def _step(self, *_: Any) -> None:
        """The optimizer is about to step."""
        # (What is left of a step at an epoch's end is no whole one; and a mean of means is no mean where the batches
        # that it accumulates are not of one length.)
        if self._watched and self._ended and len(set(self._lengths)) == 1:
            samples = sum(self._lengths)
            with self._controller.measuring():
                norms = self._m._gradients.norms(samples)
                norms = norms.divided_by(samples**2) if self._m._sums else norms
                why = "each rank's gradient against the average"
                self._controller.measured(Measurement(norms, "ranks", why, self._caveat()))
        self._watched = False  # (a hook cannot be removed from within)
        self._m._gradients.disarm()

    def _caveat(self) -> str | None:
        if self._m._coupling.found:
            return COUPLED
        length = self._delivery.in_hand.length // self._m._ranks.world_size
        return f"BatchNorm over {length}" if length < FEW and has_batch_norm(self._m._inner) else None

    def _agreed(self, deviation: float) -> float:
        everybody = [said for (said,) in self._m._ranks.gather([deviation])]
        return math.fsum(everybody) / len(everybody) if all(map(math.isfinite, everybody)) else math.nan

    def end(self) -> None:
        """Watch this step no longer."""
        self._watched = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._m._gradients.disarm()
