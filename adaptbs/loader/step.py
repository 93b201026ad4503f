"""`loader.step(batch)`: a training step that goes on in smaller pieces where its batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..gradients import shows_a_sum
from ..memory import SafeStep
from ..model import BatchLoss, TrainedParameters
from ..run import InPieces, TrainingRun

FEW = 8  # samples that show whether a loss is a mean or a sum


class LoaderStep:
    """Takes the steps of `AdaptiveDataLoader.step`.

    Args:
        run: the training run.
        optimizer: takes the steps.
        loss: the loss of a batch.
    """

    def __init__(self, run: TrainingRun, optimizer: Optimizer, loss: BatchLoss) -> None:
        self._run, self._model, self._optimizer, self._loss = run, run.model, optimizer, loss
        self._parameters = TrainedParameters(self._model, optimizer, loss)
        self._safe_step = SafeStep(optimizer, self._parameters)
        self._in_pieces = InPieces(run, loss, self._adds_up, self._weights, self._parameters)
        self._sums: bool | None = None  # True if the loss is a sum over samples; None until that is known

    def __call__(
        self, batch: Any, scaler: torch.amp.GradScaler | None, before_step: Callable[[], None] | None
    ) -> Tensor:
        self._run.controller.memory.expect_pieces()
        with _earlier_gradients_added(self._parameters()):
            loss = self._in_pieces(batch, self._in_pieces.samples(batch), partial(self._backward, scaler))
        if self._run.tracker.current.ends_step:
            self._step(scaler, before_step)
        return loss

    def _backward(self, scaler: torch.amp.GradScaler | None, pieces: list[tuple[Any, float]]) -> Tensor:
        """Run the pieces forward and backward. Return the batch's loss, detached."""
        of_step, losses = 1 / self._run.controller.batches_per_step, []
        for piece, share in pieces:
            if share == 0:  # of targets that are all ignored
                continue
            with torch.enable_grad():
                loss = self._loss(self._model, piece).reshape(())
                if share != 1:
                    loss = loss * share
                losses.append(loss.detach())
                if of_step != 1:
                    loss = loss * of_step
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _step(self, scaler: torch.amp.GradScaler | None, before_step: Callable[[], None] | None) -> None:
        """Take the optimizer's step, and set the gradients to None."""
        memory, optimizer = self._run.controller.memory, self._optimizer
        if scaler is None:
            if before_step is not None:
                before_step()
            self._safe_step(optimizer.step, memory)
        else:
            if before_step is not None:
                scaler.unscale_(optimizer)
                before_step()
            self._safe_step(partial(scaler.step, optimizer), memory)
            scaler.update()
        optimizer.zero_grad()

    def _adds_up(self, batch: Any, samples: int, pieces: int) -> bool:
        """True if the loss is a sum over samples. It is tried on a few until that is known."""
        if self._sums is None:
            few = max(min(samples // pieces, FEW), 2)  # no more than a piece, which has to fit
            part, said = self._loss.split(batch, 0, few), few if self._loss.split_given else None
            self._sums = shows_a_sum(self._model, self._loss, part, said)
        return bool(self._sums)

    def _weights(self, pieces: Sequence[Any], samples: Sequence[int | None]) -> list[float]:
        return [self._loss.weight(self._model, *piece) for piece in zip(pieces, samples, strict=True)]


@contextmanager
def _earlier_gradients_added(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Set `.grad` to None, and at the end add what it was before. After an exception it is what it was before."""
    held = [p.grad for p in parameters]  # of the batches of this step so far
    for p in parameters:
        p.grad = None
    try:
        yield
    except BaseException:
        for p, grad in zip(parameters, held, strict=True):
            p.grad = grad
        raise
    for p, grad in zip(parameters, held, strict=True):
        if grad is not None:
            p.grad = grad if p.grad is None else grad.add_(p.grad)
