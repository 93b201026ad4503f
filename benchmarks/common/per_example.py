"""Squared norms from the gradients of single examples, in a pass of their own: what the package does in the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaptbs.gradients.in_step import InStep
from adaptbs.gradients.mean_gradient import shows_a_sum
from adaptbs.model.batch_loss import BatchLoss
from adaptbs.model.batches import batch_length
from adaptbs.model.preserve import preserved_grads
from adaptbs.types import SquaredNorms


class PerExample:
    """Measures a batch by watching a pass of its own. `.grad`, buffers and random states are restored.

    Args:
        model: the model.
        batch_loss: its loss on a batch.
    """

    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        self._model, self._batch_loss = model, batch_loss
        self._in_step = InStep(model)
        self._sums: bool | None = None

    def measure(self, batch: Any) -> SquaredNorms | None:
        """Squared norms of the gradients of the examples' own losses; None for a batch of one.

        Raises:
            Unsupported: if the model cannot be measured in its step.
        """
        n = batch_length(batch)
        if n < 2:
            return None
        if self._sums is None:
            self._sums = shows_a_sum(self._model, self._batch_loss, batch)
        with self._batch_loss.preserving(self._model), preserved_grads(self._model.parameters()), torch.enable_grad():
            self._in_step.arm(n)
            try:
                torch.autograd.backward(self._batch_loss(self._model, batch).reshape(()))
                norms = self._in_step.norms()
            finally:
                self._in_step.disarm()
        if norms is None:
            raise ValueError("the loss depends on no trainable parameter")
        return norms.divided_by(n**2) if self._sums else norms
