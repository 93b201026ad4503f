"""A Learner's training step that runs in micro-batches if its batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from fastai.callback.core import CancelBackwardException, CancelStepException
from fastai.learner import Learner
from torch import Tensor

from ..memory import BatchCuts, SafeStep, bounds, run_in_pieces, shares
from ..model import BatchLoss, Snapshot, batch_length, has_batch_norm, preserved, summing, trainable
from ..run import NOT_CUT, TrainingRun
from .learner import carried, carrying, prediction

NAME = "_do_one_batch"  # the method that is replaced, on this Learner only


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
        self._learn, self._run, self._controller, self._loss = learn, run, run.controller, loss
        self._tracker, holds = run.tracker, run.controller.holds
        holds.remove(NOT_CUT)  # of a resumed run, which may have been given `split=` meanwhile
        self._cuts = BatchCuts(loss, learn.model, self._shares, partial(holds.doubt, NOT_CUT))
        self._safe_step = SafeStep(getattr(learn.opt, "opt", learn.opt), lambda: learn.model.parameters())
        self._mixed: Any = None  # the Learner's MixedPrecision callback, if it has one
        self._left_autocast = False  # True once the callback's context has been left in this batch

    def start(self) -> None:
        """Take the Learner's steps from here on, unless the Learner has a step method of its own."""
        ours = getattr(type(self._learn), NAME) is getattr(Learner, NAME) and NAME not in self._learn.__dict__
        self._controller.memory.expect_pieces(ours)
        if ours:
            # Looked up once an epoch, because at every step that would take as long as the step of a small model.
            model = self._learn.model
            self._before = Snapshot(model)
            self._mixed = getattr(self._learn, "mixed_precision", None)
            self._learn.__dict__[NAME] = self

    def stop(self) -> None:
        """Let the Learner take its steps itself again."""
        if self._learn.__dict__.get(NAME) is self:
            del self._learn.__dict__[NAME]

    def __call__(self) -> None:
        learn, memory = self._learn, self._controller.memory
        if not learn.training or not len(learn.yb):
            type(learn)._do_one_batch(learn)
            return
        xb, yb, _ = whole = learn.xb, learn.yb, carried(learn)
        samples = self._tracker.current.num_samples if self._loss.split_given else batch_length(xb)
        before = self._before
        before.take(all_random=samples > memory.largest_run)

        def undo() -> None:
            self._run.measuring.stop()  # what was seen of the failed pass would be held for its end
            learn.xb, learn.yb = xb, yb
            for p in trainable(learn.model):
                p.grad = None  # before a step the gradients are None or zero, so nothing is lost
            before.restore()

        self._left_autocast = False
        run, why_not = partial(self._backward, whole, samples), partial(self._cuts.why_not, whole, samples)
        if memory.may_be_exceeded and samples > memory.largest_run:
            why_not()  # before the batch grows past what can be run
        _, fits = run_in_pieces(run, samples, memory, undo=undo, least=self._least, why_not=why_not)
        if fits is not None:
            self._controller.ran_out_of_memory(fits)
        learn._with_events(partial(self._safe_step, learn._step, memory), "step", CancelStepException)
        learn.opt.zero_grad()

    def _least(self) -> int:
        return 2 if has_batch_norm(self._learn.model) else 1

    def _backward(self, whole: tuple[Any, Any, Any], samples: int, pieces: int) -> None:
        learn = self._learn
        cut = self._cuts.in_pieces(whole, samples, pieces)
        losses, preds = [], []
        for (learn.xb, learn.yb, beside), share in zip(cut, self._shares(whole, samples, cut), strict=True):
            if self._left_autocast:
                self._mixed.before_batch()
                self._left_autocast = False
            learn.pred = learn.model(*learn.xb)
            learn("after_pred")
            with carrying(learn, [beside]) if pieces > 1 else nullcontext():
                learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
            learn.loss = learn.loss_grad.clone()
            learn("after_loss")
            self._left_autocast = self._mixed is not None
            if share != 1:
                learn.loss_grad, learn.loss = learn.loss_grad * share, learn.loss * share
            losses.append(learn.loss)
            preds.append(learn.pred)
            learn._with_events(learn._backward, "backward", CancelBackwardException)
        learn.xb, learn.yb, _ = whole
        if pieces > 1:
            learn.loss = torch.stack([loss.detach() for loss in losses]).sum()
            learn.loss_grad = learn.loss
            if all(isinstance(pred, Tensor) for pred in preds):
                learn.pred = torch.cat([pred.detach() for pred in preds])

    def _shares(self, whole: Any, samples: int, cut: Sequence[Any]) -> list[float]:
        """The weight of each micro-batch's loss in the loss of the whole batch."""
        if len(cut) == 1:
            return [1.0]
        loss_func, model = self._learn.loss_func, self._learn.model
        if getattr(loss_func, "reduction", "mean") == "sum":
            return [1.0] * len(cut)
        sums = summing(loss_func)
        if sums is None:
            if self._loss.split_given:
                return shares([end - begin for begin, end in pairwise(bounds(samples, len(cut)))])
            return shares([batch_length(xb) for xb, _, _ in cut])
        weights = []
        with torch.no_grad(), preserved(model):
            for xb, yb, _ in cut:
                pred = prediction(self._learn, model(*xb))
                total = sums(pred, *yb)
                weights.append((total / loss_func(pred, *yb)).item() if total else 0.0)
        return shares(weights)
