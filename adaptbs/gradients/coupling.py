"""Detect losses that are neither a mean nor a sum over samples. Every noise-scale formula assumes one of the two."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..model import BatchLoss, batch_length, preserved, slice_batch, without_chance

log = logging.getLogger(__name__)

LOOKS = 5  # number of batches examined
FEWEST = 16  # samples; in smaller batches the weights of samples (class weights, ignored targets) could look the same
# Share of the loss. Samples' weights rarely change a loss by as much in every batch. A contrastive loss changes by
# log 2 / log n.
OFF = 0.05


class Coupling:
    """Compares the losses of two halves of a batch with the loss of the whole batch, for the first few batches.

    The losses of the halves add up to once the whole loss if it is a sum, and to twice the whole loss if it is a mean.
    A contrastive loss does neither, since more samples are harder to tell apart. The model's state is restored.

    Args:
        model: the model.
        batch_loss: its loss on a batch.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self._deviations: list[float] = []
        self._looks = LOOKS

    @property
    def found(self) -> bool:
        """True if all `LOOKS` batches deviated by more than `OFF`, all in the same direction.

        Deviations that come from samples' weights have a random sign.
        """
        signs = {math.copysign(1, d) for d in self._deviations}
        return len(self._deviations) == LOOKS and len(signs) == 1 and min(map(abs, self._deviations)) > OFF

    def state_dict(self) -> dict[str, Any]:
        return {"deviations": list(self._deviations), "looks": self._looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._deviations, self._looks = list(state["deviations"]), state["looks"]

    def look(self, batch: Any, agreed: Callable[[float], float] | None = None) -> None:
        """Examine a batch. Does nothing once `LOOKS` batches have been examined.

        Args:
            batch: the batch, skipped if it has fewer than `FEWEST` samples.
            agreed: function from this rank's deviation to the one all ranks agree on, where nan means that a rank could
                not compute it. With it the caller must check the number of samples, so that either all ranks call this
                or none.
        """
        if not self._looks or (agreed is None and batch_length(batch) < FEWEST):
            return
        self._looks -= 1
        deviation = math.nan
        try:
            deviation = self._deviation(batch)
        except Exception as error:  # any fault that matters shows in the measurement too
            log.info("could not check whether the loss couples samples: %s: %s", type(error).__name__, error)
            # The other ranks call again, so with `agreed` this rank must too.
            self._looks = self._looks if agreed else 0
        if agreed is not None:
            deviation = agreed(deviation)
        self._deviations += [deviation] if math.isfinite(deviation) else []

    def _deviation(self, batch: Any) -> float:
        n = batch_length(batch) // 2 * 2
        slices = [slice_batch(batch, *span) for span in ((0, n), (0, n // 2), (n // 2, n))]
        with torch.enable_grad(), without_chance(self._model), preserved(self._model):
            whole, *halves = (self._batch_loss(self._model, each).item() for each in slices)
        ratio = sum(halves) / whole if whole else math.nan
        return min(ratio - 1, ratio / 2 - 1, key=abs)
