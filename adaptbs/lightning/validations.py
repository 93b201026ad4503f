"""Lets a fit that goes on from a checkpoint draw the random numbers of the fit that was not stopped.

Private names of Lightning that adaptbs relies on here, besides those in `loop.py`:

    trainer.fit_loop.epoch_loop._should_check_val_fx             whether a validation comes after a batch
    trainer.fit_loop.epoch_loop.val_loop (._combined_loader,     the validation, and its loaders,
        .setup_data, .increment_progress_to_evaluation_end,      which are iterated when a fit goes on
        .restarted_mid_evaluation)
"""

from __future__ import annotations

from typing import Any

from .randomness import random_state, set_random_state

PASSES_OVER = "increment_progress_to_evaluation_end"


class ValidationDraws:
    """The draws of validations from torch's generators, which each iteration of a loader makes.

    A checkpoint may be saved after a batch and before its validation. Lightning does not make that validation when it
    goes on. But it begins to iterate the loader if the epoch in which it goes on is one that validates. With other
    draws the next epochs would have other orders and other dropout.

    Args:
        trainer: the Trainer, about to train.

    Attributes:
        random: the random states before the validation that is being made; None outside of one. An error may end it.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._epoch_loop = trainer, trainer.fit_loop.epoch_loop
        self._loop = self._epoch_loop.val_loop
        self._passes_over = getattr(self._loop, PASSES_OVER)
        self._past = True  # False from a batch on until its validation is over, or the epoch
        self.random: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None  # the same, from the end of the batch on
        self._came_when_left: bool | None = None
        setattr(self._loop, PASSES_OVER, self._pass_over)

    def _pass_over(self) -> None:
        states = random_state()
        self._passes_over()
        set_random_state(states)

    def begin_batch(self) -> None:
        self._past = False

    def end_batch(self) -> None:
        self._before = random_state() if self.comes else None

    def begin(self) -> None:
        """A validation begins."""
        self.random = self._before

    def pass_by(self) -> None:
        """The validation is over, or the epoch is."""
        self._past, self.random, self._before = True, None, None

    @property
    def comes(self) -> bool:
        """True if a validation comes after the latest batch, or is being made."""
        if self._came_when_left is not None:
            return self._came_when_left
        fetcher = self._trainer.fit_loop._data_fetcher
        return not self._past and bool(self._epoch_loop._should_check_val_fx(fetcher))

    def draw(self) -> None:
        """Draw as the validation that came after the saved batch, unless Lightning goes back to it."""
        if self._loop.restarted_mid_evaluation:
            return
        self._trainer.validating = True
        self._loop.setup_data()
        self._trainer.training = True
        if self._loop.skip:
            return
        for loader in self._loop._combined_loader.flattened:
            iter(loader)
            next(iter(getattr(loader, "sampler", ())), None)  # a shuffled one draws with its first index

    def leave(self) -> None:
        """Give the Trainer its own method back."""
        self._came_when_left = self.comes
        vars(self._loop).pop(PASSES_OVER, None)
