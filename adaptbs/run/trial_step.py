"""The training step by which a run tries if a larger batch fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..model import BatchLoss


@dataclass(frozen=True)
class TrialStep:
    """A forward and backward pass that may be run between two training steps.

    Attributes:
        model: the module that is called, such as the one inside DistributedDataParallel. It must not wait for other
            ranks.
        loss: the loss of a batch.
    """

    model: nn.Module
    loss: BatchLoss
