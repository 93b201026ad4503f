"""Whether a loss is a mean (or a sum) over its samples at all, which every formula here assumes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..model import BatchLoss, batch_length, preserved, slice_batch, without_chance

log = logging.getLogger(__name__)

LOOKS = 5  # batches that are looked at
FEWEST = 16  # samples of such a batch: with fewer, the weights of samples (classes, ignored targets) could do the same
OFF = 0.05  # of the loss: those weights rarely change it as much time after time, a contrastive loss by log 2 / log n


class Coupling:
    """Compares the losses of two halves of a batch with that of the whole, for the first few batches.

    Two halves add up to one whole of a sum, and to two of a mean. Of a contrastive loss they do neither: the more
    samples, the more there is to tell apart. The model is left as it was.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self._deviations: list[float] = []
        self._looks = LOOKS

    @property
    def found(self) -> bool:
        """Whether every batch looked at was off, all in one direction; weights of samples are off by chance."""
        signs = {math.copysign(1, d) for d in self._deviations}
        return len(self._deviations) == LOOKS and len(signs) == 1 and min(map(abs, self._deviations)) > OFF

    def state_dict(self) -> dict[str, Any]:
        return {"deviations": list(self._deviations), "looks": self._looks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._deviations, self._looks = list(state["deviations"]), state["looks"]

    def look(self, batch: Any, agreed: Callable[[float], float] | None = None) -> None:
        """Take a batch into account; nothing once enough have been.

        Args:
            batch: of at least `FEWEST` samples, or it is passed over.
            agreed: makes what all ranks found of what this one did, nan where one could not look. Whether a batch has
                samples enough is then for the caller to say, so that all ranks ask or none.
        """
        if not self._looks or (agreed is None and batch_length(batch) < FEWEST):
            return
        self._looks -= 1
        deviation = math.nan
        try:
            deviation = self._deviation(batch)
        except Exception as error:  # what is wrong here shows in the measurement itself, or is of no harm to it
            log.info("whether the loss couples samples is not known: %s: %s", type(error).__name__, error)
            self._looks = self._looks if agreed else 0  # (the other ranks will ask again)
        if agreed is not None:
            deviation = agreed(deviation)
        self._deviations += [deviation] if math.isfinite(deviation) else []

    def _deviation(self, batch: Any) -> float:
        n = batch_length(batch) // 2 * 2
        parts = [slice_batch(batch, *span) for span in ((0, n), (0, n // 2), (n // 2, n))]
        with torch.enable_grad(), without_chance(self._model), preserved(self._model):
            whole, *halves = (self._batch_loss(self._model, part).item() for part in parts)
        ratio = sum(halves) / whole if whole else math.nan
        return min(ratio - 1, ratio / 2 - 1, key=abs)
