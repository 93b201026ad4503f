"""Warns, once, of a loop that leaves its learning rate or its optimizer's steps out of what follows the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..run import Holds
from .other_optimizer import OtherOptimizer
from .other_parameters import OtherParameters
from .rate_by_hand import RateByHand

PATIENCE = 16  # optimizer steps' worth of batches; a GradScaler may leave the first steps out

STEP = "optimizer is not stepped"  # reasons to hold the batch
OTHER = "another optimizer trains the model"

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
    """Holds the batch where learning rates, parameters or optimizers should follow it and do not, and says so once.

    It watches for four things: a learning rate that is set by the number of the batch (`RateByHand`), an optimizer that
    the loader was given and that is never stepped, parameters of the model that are trained by another
    (`OtherParameters`), and an optimizer of another model in the same loop (`OtherOptimizer`).

    Args:
        optimizer: the loop's optimizer.
        rate_follows: True if the loader drives a scheduler, or the batch cannot change.
        follows: True if any hyperparameter is to follow the batch. If none is, only the rate is watched.
        batches_per_step: batches of an optimizer step.
        holds: reasons to hold the batch.
        others: returns parameters of the model that train and are not the optimizer's, a few of them.
        parameters: returns the model's parameters. None: the batch cannot change, so no step has to follow it.

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
        self._optimizer, self._follows, self._holds = optimizer, follows, holds
        self._patience = self._full_patience = PATIENCE * batches_per_step  # batches to wait for a step
        self._rate = RateByHand(optimizer, not rate_follows, self._full_patience, holds)
        self._may_change = parameters is not None
        self._others = OtherParameters(others if self._may_change else tuple)
        self._other = OtherOptimizer(optimizer, parameters or tuple)
        self._has_other = self._other_said = False  # an optimizer of another model
        self.saw_a_step, self.ever_stepped, self._no_step_said = not follows, False, False
        self.watches = not rate_follows or follows

    def stepped(self) -> None:
        """The optimizer takes a step."""
        self.saw_a_step = self.ever_stepped = True
        self.watches = self._rate.is_free or self._looks_for_others
        self._holds.remove(STEP)

    @property
    def _looks_for_others(self) -> bool:
        return bool(self._others.watched) or self._other.is_watched_for

    def progress_was_read(self) -> None:
        """The loop asks for the progress: a rate that it sets is taken to follow that."""
        if self._rate.progress_was_read():
            self.watches = not self.saw_a_step or self._looks_for_others

    def begin_epoch(self) -> None:
        """An iteration begins."""
        self._rate.begin_epoch()
        if not self._follows:
            return
        if self.saw_a_step:  # another optimizer may have taken its place meanwhile
            self.saw_a_step, self.watches, self._patience = False, True, self._full_patience
        if not self._others.begin_epoch() and not self._has_other:
            self._holds.remove(OTHER)
        if self._may_change:
            self._other.begin(self._has_other)
        self.watches = self.watches or self._looks_for_others

    def end_epoch(self) -> None:
        """An iteration is over, or was broken off."""
        self._other.stop()

    def look(self, step_is_due: bool) -> None:
        """Look at what the loop has done since the latest batch.

        Args:
            step_is_due: True if the loop has trained, or a batch of another size than the first has been delivered.
        """
        # This runs at every step of a loop without a scheduler, so a rate that has stayed is seen without a call.
        rate = self._rate
        if rate.changes or (rate.is_free and self._optimizer.param_groups[0]["lr"] is not rate.latest):
            rate.look()
        if step_is_due and not self.saw_a_step and self._patience:
            self._wait_for_a_step()
        if self._others.watched and self._others.look():
            self._holds.doubt(OTHER, OTHERS)
        if self._other.is_watched_for:
            found = self._other.look()
            if not self._other.is_watched_for:
                self._has_looked(found)

    def _wait_for_a_step(self) -> None:
        """Hold the batch where the optimizer is not stepped, once patience is at its end."""
        self._patience -= 1
        if self._patience:
            return
        self.watches = self._rate.is_free or self._looks_for_others
        if not self._may_change:
            return
        if not self._no_step_said:
            self._no_step_said, why = True, NO_STEP_ANY_MORE if self.ever_stepped else NO_STEP
            self._holds.warn(why, type(self._optimizer).__name__)
        self._holds.add(STEP)

    def _has_looked(self, found: Optimizer | None) -> None:
        """Hold the batch where an optimizer of something else was stepped at several batches."""
        found = found if self.saw_a_step else None  # else it is in place of the loader's, not beside it
        self.watches = self._rate.is_free or bool(self._others.watched) or not self.saw_a_step
        if found is not None:
            self._holds.add(OTHER)
            if not self._other_said:
                self._holds.warn(OTHER_MODEL, type(found).__name__)
            self._other_said = True
        elif self._has_other and not self._others.are_trained:
            self._holds.remove(OTHER)
        self._has_other = found is not None

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._rate.state_dict(),
            "_moved": self._others.moved,
            "saw_a_step": self.saw_a_step,
            "ever_stepped": self.ever_stepped,
            "watches": self.watches,
            "_patience": self._patience,
            "_said": self._no_step_said,
            "_has_other": self._has_other,
            "_other_said": self._other_said,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rate.load_state_dict(state)
        self._others.load(state["_moved"])
        self.saw_a_step, self.ever_stepped, self.watches = state["saw_a_step"], state["ever_stepped"], state["watches"]
        self._patience, self._no_step_said = state["_patience"], state["_said"]
        self._has_other, self._other_said = state["_has_other"], state["_other_said"]
