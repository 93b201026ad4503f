"""`loader.step(batch)`: a training step that goes on in smaller pieces where its batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..gradients import shows_a_sum
from ..memory import BatchCuts, SafeStep, bounds, run_in_pieces, shares
from ..model import BatchLoss, Snapshot, batch_length, has_batch_norm, trainable
from ..run import NOT_CUT, TrainingRun

FEW = 8  # samples that show whether a loss is a mean or a sum


class LoaderStep:
    """See `AdaptiveDataLoader.step`.

    Args:
        run: the training run.
        optimizer: takes the steps.
        loss: the loss of a batch.
    """

    def __init__(self, run: TrainingRun, optimizer: Optimizer, loss: BatchLoss) -> None:
        self._run, self._model, self._optimizer, self._loss = run, run.model, optimizer, loss
        self._safe_step = SafeStep(optimizer, self._model.parameters)
        self._before: Snapshot | None = None
        holds = run.controller.holds
        holds.remove(NOT_CUT)  # of a resumed run, which may have been given `split=` meanwhile
        self._cuts = BatchCuts(loss, run.model, self._shares, partial(holds.doubt, NOT_CUT))
        self._sums: bool | None = None  # whether the loss adds up over a batch; None until that was asked

    def __call__(
        self, batch: Any, scaler: torch.amp.GradScaler | None, before_step: Callable[[], None] | None
    ) -> Tensor:
        controller, memory = self._run.controller, self._run.controller.memory
        memory.expect_pieces()
        samples = self._run.tracker.current.num_samples if self._loss.split_given else batch_length(batch)
        new = samples > memory.largest_run
        why_not = partial(self._cuts.why_not, batch, samples)
        if new and memory.may_be_exceeded:
            why_not()  # before the batch grows past what can be run
        run = partial(self._pass, batch, samples, scaler, 1 / controller.batches_per_step)
        loss, fits = self._backward(run, samples, new, why_not)
        if fits is not None:
            controller.ran_out_of_memory(fits)
        if self._run.tracker.current.ends_step:
            if before_step is not None:
                if scaler is not None:
                    scaler.unscale_(self._optimizer)
                before_step()
            step = partial(scaler.step, self._optimizer) if scaler is not None else self._optimizer.step
            self._safe_step(step, memory)
            if scaler is not None:
                scaler.update()
            self._optimizer.zero_grad()
        return loss

    def _backward(
        self, run: Callable[[int], Tensor], samples: int, new: bool, why_not: Callable[[], str | None]
    ) -> tuple[Tensor, int | None]:
        """Add the batch's gradient to `.grad`; its loss, and the largest piece that fitted, where it did not whole."""
        if self._before is None:
            self._before = Snapshot(self._model)
        parameters, before, memory = trainable(self._model), self._before, self._run.controller.memory
        before.take(all_random=new)
        held = [p.grad for p in parameters]  # of the batches of this step so far

        def undo() -> None:
            self._run.measuring.stop()  # what was seen of the failed pass would be held for its end
            for p in parameters:
                p.grad = None
            before.restore()

        for p in parameters:
            p.grad = None
        try:
            loss, fits = run_in_pieces(run, samples, memory, undo=undo, least=self._least, why_not=why_not)
        except BaseException:
            for p, grad in zip(parameters, held, strict=True):
                p.grad = grad
            raise
        for p, grad in zip(parameters, held, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)
        return loss, fits

    def _least(self) -> int:
        return 2 if has_batch_norm(self._model) else 1

    def _pass(
        self, batch: Any, samples: int, scaler: torch.amp.GradScaler | None, of_step: float, pieces: int
    ) -> Tensor:
        cut = self._cuts.in_pieces(batch, samples, pieces)
        losses = []
        for piece, share in zip(cut, self._shares(batch, samples, cut), strict=True):
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

    def _shares(self, batch: Any, samples: int, cut: Sequence[Any]) -> list[float]:
        """The share of each piece's loss in the whole batch's."""
        if len(cut) == 1:
            return [1.0]
        if self._sums is None:
            few = max(min(samples // len(cut), FEW), 2)  # no more than a piece, which has to fit
            part, said = self._loss.split(batch, 0, few), few if self._loss.split_given else None
            self._sums = shows_a_sum(self._model, self._loss, part, said)
        if self._sums:
            return [1.0] * len(cut)
        lengths: list[int | None] = [None] * len(cut)  # as their layouts tell
        if self._loss.split_given:
            lengths = [end - begin for begin, end in pairwise(bounds(samples, len(cut)))]
        return shares([self._loss.weight(self._model, *piece) for piece in zip(cut, lengths, strict=True)])
