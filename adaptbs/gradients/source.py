"""Which source of squared norms a model allows."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from ..types import SquaredNorms
from .batch_loss import BatchLoss
from .micro_batches import HalfBatches
from .per_example import PerExample, Unsupported

log = logging.getLogger(__name__)


class BestSource:
    """Per-example norms where the model allows them, since they vary less; else the two halves of a batch.

    Convolutions are measured by halves: their per-example norms cost two to four times as much (docs/measuring.md).
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._halves = HalfBatches(model, batch_loss)
        self._source: HalfBatches | PerExample = PerExample(model, batch_loss)
        if any(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in model.modules()):
            self._fall_back("it has convolutions")

    def measure(self, batch: Any) -> SquaredNorms | None:
        """The four numbers of a batch, on the device; None where it is too short."""
        try:
            return self._source.measure(batch)
        except Unsupported as why:
            self._fall_back(str(why))
            return self._halves.measure(batch)

    def _fall_back(self, why: str) -> None:
        log.info("measuring by the halves of a batch, not per example: %s", why)
        self._source = self._halves
