"""Warns, once, of a loop that leaves its learning rate or its optimizer's steps out of what follows the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..run import RATE, Holds
from .other_optimizer import OtherOptimizer

STEPPED = "_wrapped_by_lr_sched"  # torch's mark on the `step` of an optimizer that has a scheduler
PATIENCE = 16  # optimizer steps' worth of batches; a GradScaler may leave the first steps out
BY_RULE = 3  # changes of the learning rate by hand that are no accident, each within PATIENCE of the one before

STEP = "optimizer is not stepped"  # reasons to hold the batch
OTHER = "another optimizer trains the model"

SCHEDULER = (
    "a scheduler is stepped from batch to batch that the loader was not given: as batches grow there are fewer of "
    "them, so it would not come to its end, and the batch is held. Make it first, from the length of a stock "
    "DataLoader, and give it as scheduler= (AdaptiveDataLoader.from_loader takes the DataLoader over)."
)
BY_HAND = (
    "the learning rate is set from batch to batch, and loader.progress is not asked for. A rate that is computed from "
    "the number of the batch would not come to its end, because larger batches are fewer, so the batch is held while "
    "it is set so. Compute it from loader.progress, which is 0..1 over the run, or give a scheduler as scheduler=."
)
NO_STEP = (
    "step() of the %s that the loader was given is never called, so no hyperparameter would follow a larger batch, and "
    "the batch is held: give optimizer= the one whose step() is called (SAM's base_optimizer, say), or transfer=() if "
    "that is meant. Of several loaders with one optimizer it follows the one that is trained on, and of those in one "
    "loop (zip) the last: let the others be stock DataLoaders."
)
NO_STEP_ANY_MORE = (
    "the loop trains on, but step() of the %s that the loader was given is not called any more: no hyperparameter of "
    "another optimizer follows the batch, and the batch is held. Build another loader with the new optimizer; or keep "
    "this one, and change its groups (add_param_group, group['lr'])."
)
OTHERS = (
    "parameters of the model that are not the loader's optimizer's are changed at each step, as by a second optimizer, "
    "whose hyperparameters would not follow a larger batch, so the batch is held. Give one optimizer that has a group "
    "for each part, or transfer=() if nothing is to follow. (An averaged copy in the model: requires_grad_(False).)"
)
OTHER_MODEL = (
    "another optimizer (%s) is stepped in the loop too, on parameters that are not the model's, as of a GAN's other "
    "network or of a decoder: its hyperparameters would not follow a larger batch, so the batch is held. Give a model "
    "that holds all parts, as nn.ModuleList does, and one optimizer with a group for each; or transfer=() if nothing "
    "is to follow."
)
OVER = (
    "the run is over, so batches are delivered that are neither counted nor measured: loader.plain_batches() says that "
    "this is meant. To train on, build another loader."
)
NO_GRADIENTS = (
    "gradients are switched off, so batches are delivered that are neither counted nor measured. For validation use a "
    "stock DataLoader, or loader.plain_batches() if this is meant. To train, begin the iteration with gradients on."
)

TRAINER = (
    "an AdaptiveDataLoader was given to Lightning's Trainer, which would validate, save and end by counts of batches "
    "that grow. Give the Trainer the stock DataLoader, and write: from adaptbs.lightning import AdaptiveBatchSize; "
    "Trainer(callbacks=[AdaptiveBatchSize()]), with the other arguments that the loader took"
)


def is_trainer(module: str) -> bool:
    """True if it is Lightning's Trainer that iterates a loader, by the name of the module that asks for it."""
    return module.startswith(("lightning.pytorch.", "pytorch_lightning."))


def refused_to_trainer() -> Iterator[Any]:
    """Raise TypeError at the first batch. Lightning would hide an error that is raised when an iteration begins."""
    raise TypeError(TRAINER)
    yield


class MisuseWarnings:
    """Warns of learning rates, parameters and optimizers that should follow the batch and do not.

    Args:
        optimizer: the loop's optimizer.
        rate_follows: True if the loader drives a scheduler, or the batch cannot change.
        follows: True if any hyperparameter is to follow the batch.
        batches_per_step: batches of an optimizer step.
        holds: reasons to hold the batch.
        others: returns parameters of the model that train and are not the optimizer's, a few of them.
        parameters: returns the model's parameters. None: optimizers of other models are none of its business.

    Attributes:
        saw_a_step: True if the optimizer has taken a step in this iteration, or need not.
        ever_stepped: True if it has taken a step in any iteration.
        watches: True while there is anything left to warn of.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        rate_follows: bool,
        follows: bool,
        batches_per_step: int,
        holds: Holds,
        others: Callable[[], Sequence[Tensor]] = tuple,
        parameters: Callable[[], Iterable[Tensor]] | None = None,
    ) -> None:
        self._other = OtherOptimizer(optimizer, parameters or tuple)
        self._looks_at_all = parameters is not None
        self._has_other = self._other_said = False
        self._optimizer, self._rate_is_free, self._holds = optimizer, not rate_follows, holds
        self._patience = self._calm = PATIENCE * batches_per_step
        self.saw_a_step, self.ever_stepped, self._follows = not follows, False, follows
        self._find_others, self._version = others, 0
        self._others: Sequence[Tensor] = ()
        self._moved = 0  # batches at which the others had been changed
        self.watches = not rate_follows or follows
        self._lr: object = None
        self._changes, self._since_change = 0, 0  # of the learning rate, and batches since the latest
        self._warned = self._held = self._said = False

    def stepped(self) -> None:
        """The optimizer takes a step."""
        self.saw_a_step = self.ever_stepped = True
        self.watches = self._rate_is_free or self._looks_for_others
        self._holds.remove(STEP)

    @property
    def _looks_for_others(self) -> bool:
        return bool(self._others) or self._other.is_watched_for

    def progress_was_read(self) -> None:
        """The loop asks for the progress: a rate that it sets is taken to follow that."""
        if not getattr(self._optimizer.step, STEPPED, False):
            self._rate_is_free = False
            self.watches = not self.saw_a_step or self._looks_for_others
            self._holds.remove(RATE)

    def begin_epoch(self) -> None:
        """An iteration begins. What a loop does between two of them is its own affair."""
        self._lr = self._optimizer.param_groups[0]["lr"]
        if not self._follows:
            return
        if self.saw_a_step:  # another optimizer may have taken its place meanwhile
            self.saw_a_step, self.watches, self._patience = False, True, self._calm
        others = self._find_others()
        if not others:  # now the optimizer has all
            self._moved = 0
            if not self._has_other:
                self._holds.remove(OTHER)
        if self._looks_at_all:
            self._other.begin(self._has_other)
        self._others = others if self._moved < BY_RULE else ()
        self._version = sum(p._version for p in self._others)
        self.watches = self.watches or self._looks_for_others

    def end_epoch(self) -> None:
        """An iteration is over, or was broken off."""
        self._other.stop()

    def look(self, step_is_due: bool) -> None:
        """Look at what the loop has done since the latest batch.

        Args:
            step_is_due: True if the loop has trained, or a batch of another size than the first has been delivered.
        """
        lr = self._optimizer.param_groups[0]["lr"]
        # A scheduler sets a new number at each step, even an equal one; where it fills a tensor that is not seen.
        if self._rate_is_free and lr is not self._lr:
            self._rate_changed()
        elif self._changes:
            self._rate_stayed()
        self._lr = lr
        if step_is_due and not self.saw_a_step and self._patience:
            self._patience -= 1
            if not self._patience:
                self.watches = self._rate_is_free or self._looks_for_others
                if not self._said:
                    self._said, why = True, NO_STEP_ANY_MORE if self.ever_stepped else NO_STEP
                    self._holds.warn(why, type(self._optimizer).__name__)
                self._holds.add(STEP)
        if self._others:
            self._look_at_others()
        if self._other.is_watched_for:
            found = self._other.look()
            if not self._other.is_watched_for:
                self._has_looked(found)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self, name, state[name])

    def _look_at_others(self) -> None:
        """Hold the batch where parameters that are not the optimizer's go on changing."""
        version = sum(p._version for p in self._others)
        self._moved += version != self._version
        self._version = version
        if self._moved >= BY_RULE:
            self._others = ()
            self._holds.doubt(OTHER, OTHERS)

    def _has_looked(self, found: Optimizer | None) -> None:
        """Hold the batch where an optimizer of something else was stepped at several batches."""
        found = found if self.saw_a_step else None  # else it is in place of the loader's, not beside it
        self.watches = self._rate_is_free or bool(self._others) or not self.saw_a_step
        if found is not None:
            self._holds.add(OTHER)
            if not self._other_said:
                self._holds.warn(OTHER_MODEL, type(found).__name__)
            self._other_said = True
        elif self._has_other and self._moved < BY_RULE:
            self._holds.remove(OTHER)
        self._has_other = found is not None

    def _rate_changed(self) -> None:
        self._changes, self._since_change = self._changes + 1, 0
        by_scheduler = getattr(self._optimizer.step, STEPPED, False)
        if self._held or (self._changes < BY_RULE and not by_scheduler):
            return
        self._held = True
        self._holds.add(RATE)
        if not self._warned:
            self._warned = True
            self._holds.warn(SCHEDULER if by_scheduler else BY_HAND)

    def _rate_stayed(self) -> None:
        """A warm-up by hand ends, and then the batch is free."""
        self._since_change += 1
        if self._since_change >= self._calm:
            self._changes, self._held = 0, False
            self._holds.remove(RATE)


_REMEMBERED = (
    "saw_a_step", "ever_stepped", "watches", "_patience", "_rate_is_free", "_changes", "_since_change", "_held",
    "_warned", "_said", "_moved", "_has_other", "_other_said",
)  # fmt: skip
