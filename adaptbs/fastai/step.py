"""A Learner's training step that runs in micro-batches if its batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from fastai.callback.core import (
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
)
from fastai.learner import Learner
from torch import Tensor

from ..memory import SafeStep
from ..model import BatchLoss, TrainedParameters, batch_length, preserved, summing, weight_of_targets
from ..run import InPieces, TrainingRun
from .learner import batch_of, carrying, prediction

NAME = "_do_one_batch"  # the method that is replaced, on this Learner only
CANCELS = CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException
CALLED = (NAME, "_do_grad_opt")  # methods whose work is done here


class FastaiStep:
    """Does what `Learner._do_one_batch` does, with the same events, but in micro-batches if memory requires it.

    The events from `after_pred` to `after_backward` occur for each micro-batch, with its own `xb` and `yb`. The events
    of the step and those around the batch occur once, with the whole batch, its loss and its predictions.

    Args:
        learn: the Learner whose training steps are taken here between `start` and `stop`.
        run: the training run of this fit.
        loss: the Learner's loss of a batch (inputs, targets, result of `carried`), which knows how to cut it.
    """

    def __init__(self, learn: Any, run: TrainingRun, loss: BatchLoss) -> None:
        self._learn, self._controller = learn, run.controller
        optimizer = getattr(learn.opt, "opt", learn.opt)
        parameters = TrainedParameters(learn.model, optimizer, loss)
        self._in_pieces = InPieces(run, loss, self._adds_up, self._weights, parameters)
        self._safe_step = SafeStep(optimizer, parameters)
        self._mixed: Any = None  # the Learner's MixedPrecision callback, if it has one
        self._left_autocast = False  # True once the callback's context has been left in this batch

    def start(self) -> None:
        """Take the Learner's steps from here on, unless the Learner has a step method of its own."""
        ours = all(
            getattr(type(self._learn), name, None) is getattr(Learner, name, None) and name not in self._learn.__dict__
            for name in CALLED
        )
        self._controller.memory.expect_pieces(ours)
        if ours:
            # Once an epoch, because that takes long.
            self._in_pieces.search_model()
            self._mixed = getattr(self._learn, "mixed_precision", None)
            self._learn.__dict__[NAME] = self

    def stop(self) -> None:
        """Let the Learner take its steps itself again."""
        if self._learn.__dict__.get(NAME) is self:
            del self._learn.__dict__[NAME]

    def __call__(self) -> None:
        learn = self._learn
        if not learn.training or not len(learn.yb):
            type(learn)._do_one_batch(learn)
            return
        whole = batch_of(learn)
        self._left_autocast = False
        # Before a step the gradients are None or zero.
        found = learn.xb, learn.yb
        self._in_pieces(whole, self._in_pieces.samples(whole[0]), partial(self._backward, found))
        learn._with_events(partial(self._safe_step, learn._step, self._controller.memory), "step", CancelStepException)
        learn.opt.zero_grad()

    def _backward(self, found: tuple[Any, Any], pieces: list[tuple[Any, float]]) -> None:
        """Run the micro-batches forward and backward. Leave the batch as `found`, its loss and its predictions."""
        learn = self._learn
        try:
            self._run_through(found, pieces)
        except CANCELS:  # by a callback: of a batch that is not trained on nothing is to be left
            if len(pieces) > 1:
                learn.xb, learn.yb = found
                learn.opt.zero_grad()
            raise

    def _run_through(self, found: tuple[Any, Any], pieces: list[tuple[Any, float]]) -> None:
        learn, several = self._learn, len(pieces) > 1
        losses, preds = [], []
        for (xb, yb, beside), share in pieces:
            if several:  # a whole batch stays as other callbacks have it
                learn.xb, learn.yb = xb, yb
            if self._left_autocast:
                self._mixed.before_batch()
                self._left_autocast = False
            learn.pred = learn.model(*learn.xb)
            learn("after_pred")
            with carrying(learn, [beside]) if several else nullcontext():
                learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
            learn.loss = learn.loss_grad.clone()
            learn("after_loss")
            self._left_autocast = self._mixed is not None
            if share != 1:
                learn.loss_grad, learn.loss = learn.loss_grad * share, learn.loss * share
            losses.append(learn.loss)
            preds.append(learn.pred)
            learn._with_events(learn._backward, "backward", CancelBackwardException)
        if several:
            learn.xb, learn.yb = found
            learn.loss = torch.stack([loss.detach() for loss in losses]).sum()
            learn.loss_grad = learn.loss
            if all(isinstance(pred, Tensor) for pred in preds):
                learn.pred = torch.cat([pred.detach() for pred in preds])

    def _adds_up(self, batch: Any, samples: int, pieces: int) -> bool:
        """True if the loss is a sum over samples."""
        return getattr(self._learn.loss_func, "reduction", "mean") == "sum"

    def _weights(self, pieces: Sequence[Any], samples: Sequence[int | None]) -> list[float]:
        loss_func, model = self._learn.loss_func, self._learn.model
        sums = summing(loss_func)
        if sums is None:
            return [batch_length(xb) if n is None else n for (xb, _, _), n in zip(pieces, samples, strict=True)]
        # Of the targets alone where that will do: another callback may make the prediction of the model's output.
        weights = [weight for _, yb, _ in pieces if (weight := weight_of_targets(loss_func, yb)) is not None]
        if len(weights) == len(pieces):
            return weights
        weights = []
        with torch.no_grad(), preserved(model):
            for xb, yb, _ in pieces:
                pred = prediction(self._learn, model(*xb))
                total = sums(pred, *yb)
                weights.append((total / loss_func(pred, *yb)).item() if total else 0.0)
        return weights
