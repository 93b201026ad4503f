"""Trainer's flow (log, evaluate, save, end) by the samples seen instead of the optimizer steps made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback


class AdaptiveRun(Protocol):
    """Events that the callback passes on to the trainer that installed it."""

    def begin_adaptive_run(self) -> None:
        """Training begins: model, optimizer and scheduler are made."""
        ...

    def end_adaptive_step(self) -> tuple[int, float]:
        """The optimizer has stepped. Returns the step and the epoch of the fixed run."""
        ...

    def end_adaptive_epoch(self) -> None:
        """Trainer's loop over an epoch has ended."""
        ...

    def end_adaptive_run(self) -> None:
        """Training has ended, and its last checkpoint is written."""
        ...


class AdaptiveFlowCallback(DefaultFlowCallback):
    """Replaces DefaultFlowCallback. It comes before all other callbacks.

    `state.global_step` and `state.epoch` are those of the fixed run after as many samples. So a step at k times the
    starting batch counts k, and what Trainer does every n steps still comes after as many samples as before.

    Args:
        trainer: the trainer, which begins the run.
    """

    def __init__(self, trainer: AdaptiveRun) -> None:
        self._trainer = trainer
        self._step = 0  # step of the fixed run at the latest optimizer step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the adaptive loader, now that Trainer has made model, optimizer and scheduler."""
        self._trainer.begin_adaptive_run()
        self._step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Move on to the fixed run's step, and do what the fixed run does at each step on the way."""
        before = self._step
        self._step, state.epoch = self._trainer.end_adaptive_step()
        state.global_step = self._step
        for step in range(before + 1, self._step + 1):
            control = super().on_step_end(args, replace(state, global_step=step), control, **kwargs)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Do what Trainer does at an epoch's end, which is not broken off where no batch is left."""
        self._trainer.end_adaptive_epoch()
        return super().on_epoch_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Be done with the run's last batch."""
        self._trainer.end_adaptive_run()
