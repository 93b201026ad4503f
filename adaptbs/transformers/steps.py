"""Optimizer steps whose batches go through the model in micro-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..model import BatchLoss, Calling
from .micro_batches import Micro, StepPart

Base: Any = Trainer if TYPE_CHECKING else object  # the mixin comes before a Trainer in a class's bases

SAME = 1e-3  # relative difference of two losses that are taken to be equal


class StepsInParts(Base):
    """A mixin for Trainer: its loop may be given a StepPart in place of a batch, in a context of `in_parts`."""

    loss_is_scaled_for_ga: bool | None
    current_gradient_accumulation_steps: float
    training_step: Callable[..., Tensor]
    _tr_loss: Tensor  # sum since the latest log
    _globalstep_last_logged: int
    _logs = True  # False in a pass that is no step, in which compute_loss() may log what is no step's
    _loss_weight = 1  # steps of the fixed run for which the step stands
    _counts_items: bool | None = None  # True once the loss is known to be divided by num_items_in_batch

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        """A context in which `training_step()` is called on each micro-batch, and its loss counted as the fixed run's.

        It may be one of a subclass's, before the mixin too, which calls no other.
        """
        own = vars(self).get("training_step")
        self.training_step = partial(self._step_in_parts, self.training_step)
        try:
            yield
        finally:
            del self.training_step
            if own is not None:
                self.training_step = own

    def _step_in_parts(
        self, step: Callable[..., Tensor], model: nn.Module, inputs: Any, num_items: Any = None, **kwargs: Any
    ) -> Tensor:
        """Forward and backward pass. Returns the loss times the steps of the fixed run for which the step stands.

        Trainer adds up the losses of steps between two logs.
        """
        if not isinstance(inputs, StepPart):
            loss = step(model, inputs, num_items, **kwargs)
            return self._weighted(loss)
        total = torch.zeros((), device=self.args.device)
        for i, micro in enumerate(inputs, 1):
            # The loop's own no_sync() is around all but the last part.
            with nullcontext() if i == len(inputs) else self.accelerator.no_sync(model=model):
                total = total + self._micro_step(partial(step, model, **kwargs), micro, num_items)
        return self._weighted(total)

    def _weighted(self, loss: Tensor) -> Tensor:
        """A loss times the steps of the fixed run for which its step stands.

        For one that is nan Trainer takes the mean since the latest log, but as of one step.
        """
        if self._loss_weight == 1:
            return loss
        if self.args.logging_nan_inf_filter:
            mean = self._tr_loss / max(self.state.global_step - self._globalstep_last_logged, 1)
            loss = torch.where(loss.isfinite(), loss, mean.to(loss.device))  # to ask for it would wait for the device
        return loss * self._loss_weight

    def _micro_step(self, step: Callable[..., Tensor], micro: Micro, num_items: Any) -> Tensor:
        """Forward and backward pass of one micro-batch of a step that has several."""
        said = self.loss_is_scaled_for_ga
        self.current_gradient_accumulation_steps = 1 / micro.step_share
        if micro.batch_share == 1:  # a whole batch, as ever
            return step(micro.inputs, num_items)
        if self._counts_items is None and num_items is not None:
            self._counts_items = self._divides_by_items(micro.inputs, num_items)
        try:
            # Trainer takes such a loss as divided by the step's items. It is not, so the means of batches would add up.
            if num_items is not None and not self._counts_items and said is None:
                self.loss_is_scaled_for_ga, self.current_gradient_accumulation_steps = False, 1 / micro.batch_share
            return step(micro.inputs, num_items)
        finally:
            self.loss_is_scaled_for_ga = said

    @contextmanager
    def beside_steps(self) -> Iterator[None]:
        """A context for a call of compute_loss() that is no step, so that nothing is logged."""
        self._logs = False
        try:
            with self.compute_loss_context_manager():
                yield
        finally:
            self._logs = True

    def calling(self, loss: Callable[..., Tensor]) -> Calling:
        """A loss of this trainer's as a function that says which of the user's functions it calls."""
        own = [vars(kind)["compute_loss"] for kind in type(self).__mro__ if "compute_loss" in vars(kind)]
        return Calling(loss, *own, self.compute_loss_func)

    def _divides_by_items(self, inputs: Any, num_items: Any) -> bool | None:
        """True if the loss is a sum divided by `num_items_in_batch`; None if its value does not tell."""
        losses, loss = [], BatchLoss(batch_loss=self.calling(self.compute_loss))
        for factor in (1, 2):  # each from the same random state, as dropout would else make two losses of one batch
            with torch.no_grad(), loss.preserving(self.model), self.beside_steps():
                prepared = self._prepare_inputs(copy.copy(inputs))
                losses.append(self.compute_loss(self.model, prepared, num_items_in_batch=num_items * factor).item())
        once, twice = losses
        if not math.isfinite(once) or once == 0:
            return None
        return math.isclose(2 * twice, once, rel_tol=SAME)

    def floating_point_ops(self, inputs: Any) -> int:
        """The same as `Trainer.floating_point_ops`, added up over micro-batches."""
        if isinstance(inputs, StepPart):
            return sum(self.floating_point_ops(micro.inputs) for micro in inputs)
        return super().floating_point_ops(inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        for each in [micro.inputs for micro in inputs] if isinstance(inputs, StepPart) else [inputs]:
            super()._track_num_input_tokens(each)
