"""Notices what other callbacks do to the batch, the learning rate and the model from batch to batch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..run import RATE, Holds, TrainingRun
from .hyperparameters import FastaiStepHook

CHANGED = "another callback changes the batch"  # reason to hold the batch

WARNING = (
    "%s, so the noise scale is measured on other data than is trained on, and the batch is held. Give the callback "
    "that sets learn.xb or learn.yb an order below %d, or let it do so in a transform of the DataLoaders (after_batch)."
)

OTHER_LENGTH = (
    "dls.train has been replaced in the middle of a fit by one of %d samples, where %d were planned for an epoch: "
    "from here on an epoch is a pass over it, and the fit has the epochs that were asked for. To plan by the new "
    "length, fit once for each loader."
)
OTHER_BS = (
    "dls.train.bs has been set to %d in the middle of a fit, but there the batch is AdaptiveBatchSize's, which goes on "
    "at %d. Leave one of the two out: overhead=0 leaves the batch to you."
)
BY_HAND = (
    "a callback sets the learning rate from batch to batch. A rate that is computed from the number of the batch would "
    "not come to its end, because larger batches are fewer, so the batch is held while it is set so. Give it as a "
    "schedule: cbs=ParamScheduler({'lr': f}) calls f with the share of the run done, 0..1, and the batch may grow."
)
IN_TURN = "parts of the model are trained in turn"  # reason to hold the batch
TURNS = (
    "parts of the model are trained in turn, as a GAN's generator and critic are, so the noise scale would be that of "
    "several problems together, and the batch is held. overhead=0 holds it without measuring."
)
BY_RULE = 3  # changes of the learning rate that are no accident, each within PATIENCE batches of the one before
PATIENCE = 16


class OtherCallbacks:
    """Watches the other callbacks of a Learner for changes that a larger batch would not bear.

    Args:
        learn: the Learner.
        holds: reasons to hold the batch of its run.
        order: order of the callback that measures.
        may_change: True if the batch may come to another size.

    Attributes:
        changes: compares the batch that is measured with the one that the step is made from.
    """

    def __init__(self, learn: Any, holds: Holds, order: int, *, may_change: bool) -> None:
        for reason in (CHANGED, IN_TURN, RATE):  # a resumed run may have other callbacks
            holds.remove(reason)
        self.changes = LaterChanges(learn, holds, order)
        self._parts = PartsInTurn(learn.model, holds) if may_change else None
        self._rates = RatesByHand(holds) if may_change and not has_schedule(learn) else None

    def begin_epoch(self, rate: float) -> None:
        """Take the learning rate that an epoch begins with."""
        if self._rates is not None:
            self._rates.begin_epoch(rate)

    def look(self, hook: FastaiStepHook, run: TrainingRun) -> None:
        """Look at the batch that comes, its learning rate, and the model.

        Args:
            hook: reads the learning rate before it is scaled.
            run: knows whether the batch may be measured now.
        """
        if self._rates is not None:
            self._rates.look(hook.rate)
        parts = self._parts
        if parts is not None and (parts.first.requires_grad, parts.last.requires_grad) != parts.now:
            parts.changed()
        if run.measuring.by_halves:
            self.changes.measured()


def has_schedule(learn: Any) -> bool:
    """True if the learning rate follows a schedule of fastai's (ParamScheduler)."""
    return any("lr" in (getattr(cb, "scheds", None) or ()) for cb in learn.cbs)


class LaterChanges:
    """Compares the batch that is measured by halves with the batch that the step is made from.

    If the step itself is measured, there is nothing to compare.

    Args:
        learn: the Learner.
        holds: reasons to hold the batch of its run.
        order: order of the callback that measures.

    Attributes:
        waits: True if a batch may have been measured and its step is still to come: call `check` before it.
    """

    waits = False

    def __init__(self, learn: Any, holds: Holds, order: int) -> None:
        self._learn, self._holds, self._order = learn, holds, order
        self._measured: tuple[Any, Any] | None = None
        self._said = False

    def measured(self) -> None:
        """Keep the batch as it is now, when it is measured."""
        self._measured, self.waits = (self._learn.xb, self._learn.yb), True

    def check(self) -> None:
        """Hold the batch if the step that comes is made from other data."""
        before, self._measured, self.waits = self._measured, None, False
        if before is None:
            return
        if self._same(before[0], self._learn.xb) and self._same(before[1], self._learn.yb):
            return
        self._holds.add(CHANGED)
        if not self._said:
            self._said = True
            self._holds.warn(WARNING, CHANGED, self._order)

    @staticmethod
    def _same(before: Any, now: Any) -> bool:
        """True if the two are the same object, or hold the same tensors."""
        return before is now or (len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True)))


class PartsInTurn:
    """Holds the batch of a model whose parts are trained in turn, seen by its first and its last parameter.

    A part that is frozen or unfrozen once is no doubt.

    Args:
        model: the model.
        holds: reasons to hold the batch of the run.

    Attributes:
        first, last: those parameters.
        now: whether each of them was trained at the latest look. Call `changed` where it is another.
    """

    def __init__(self, model: nn.Module, holds: Holds) -> None:
        parameters = list(model.parameters())
        self.first, self.last, self._holds = parameters[0], parameters[-1], holds
        self.now = self.first.requires_grad, self.last.requires_grad
        self._before: set[tuple[bool, bool]] = set()
        self._said = False

    def changed(self) -> None:
        """Take note that the batch that comes is to train other parts than the one before."""
        self._before.add(self.now)
        self.now = self.first.requires_grad, self.last.requires_grad
        if self.now in self._before and not self._said:
            self._said = True
            self._holds.doubt(IN_TURN, TURNS)


class RatesByHand:
    """Holds the batch while another callback sets the learning rate from batch to batch.

    A rate that is set between two epochs is no doubt: the fit has the epochs that were asked for.

    Args:
        holds: reasons to hold the batch of the run.
    """

    def __init__(self, holds: Holds) -> None:
        self._holds, self._rate = holds, 0.0
        self._changes, self._since_change, self._said = 0, 0, False

    def begin_epoch(self, rate: float) -> None:
        """Take the rate that an epoch begins with."""
        self._rate = rate

    def look(self, rate: float) -> None:
        """Look at the rate of the batch that comes, before it is scaled."""
        if rate is not self._rate and rate != self._rate:
            self._rate, self._since_change = rate, 0
            self._changes += 1
            if self._changes == BY_RULE:
                self._holds.add(RATE)
                if not self._said:
                    self._said = True
                    self._holds.warn(BY_HAND)
        elif self._changes:
            self._since_change += 1
            if self._since_change > PATIENCE:  # a warm-up, say, is over
                self._changes = 0
                self._holds.remove(RATE)
