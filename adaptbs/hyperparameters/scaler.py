"""The hyperparameters of an optimizer at the current batch, group by group."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from .bias_correction import Accumulated, corrections, steps_made
from .transfer import LR, OptimizerTraits, changed_group, factors, powers

log = logging.getLogger(__name__)

_NAME = "_adaptbs_hyperparameters"  # beside the optimizer's state, which is what its state_dict holds
_NO_POWERS = (1.0, 1.0)


class HyperparameterScaler:
    """Computes what the hyperparameters become, and counts what the optimizer's averages have accumulated.

    Nothing is counted until the betas change for the first time: all steps before were made at k = 1.

    Args:
        optimizer: torch's or fastai's; not an OptimWrapper, but what it wraps.
        traits: how it uses its hyperparameters.
    """

    def __init__(self, optimizer: Any, traits: OptimizerTraits) -> None:
        self._optimizer, self._traits = optimizer, traits
        self._debiases = traits.debiases
        self._debiased = traits.debiases_first, traits.debiases_second
        self._accumulated: list[Accumulated] = []  # one a group
        self._warned = False
        self._k, self._powers = 1.0, powers(1.0)  # of the latest step

    @classmethod
    def beside(
        cls, optimizer: Any, traits_of: Callable[[Any], OptimizerTraits], following: Collection[str]
    ) -> HyperparameterScaler:
        """The one that belongs to this optimizer; where it is new, a warning says if the optimizer is not known.

        It stays with it from loader to loader and from fit to fit, as what it counts is true of the optimizer's state.
        """
        if _NAME not in optimizer.__dict__:
            optimizer.__dict__[_NAME] = cls(optimizer, traits_of(optimizer))
        found: HyperparameterScaler = optimizer.__dict__[_NAME]
        found._warn(following)
        return found

    def _warn(self, following: Collection[str]) -> None:
        if self._traits.known or self._warned or not set(following) - LR:
            return
        self._warned = True
        log.warning(
            "optimizer %s is not known: of its hyperparameters %s the batch, the others stay as they are. "
            "transfer=('lr',) says that this is meant; if large batches make the model worse, lower max_batch_size=.",
            type(self._optimizer).__name__,
            "the learning rate and the weight decay follow" if self._traits.decoupled else "the learning rate follows",
        )

    @property
    def idle(self) -> bool:
        """True while everything is as it was found at k = 1."""
        return not self._accumulated

    def prepare_step(
        self, groups: Sequence[Mapping[str, Any]], following: Collection[str], *, k: float, lr_factor: float
    ) -> list[dict[str, Any]]:
        """Prepare the step that is now to be made; return, for each group, the new values of what changes.

        Args:
            groups: the hyperparameters of the base batch, in torch's names or fastai's.
            following: the hyperparameters that follow the batch.
            k: batch size / base batch size.
            lr_factor: the learning rate's factor; 1 where it does not follow.
        """
        if k != self._k:
            self._k, self._powers = k, powers(k)
        raised = self._powers if "betas" in following else _NO_POWERS
        corrects = self._debiases and (raised != _NO_POWERS or bool(self._accumulated))
        corrected, new = _NO_POWERS, []
        while corrects and len(self._accumulated) < len(groups):
            self._accumulated.append(Accumulated())
        for i, group in enumerate(groups):
            if corrects:
                accumulated, parameters = self._accumulated[i], self._optimizer.param_groups[i]["params"]
                is_new = not (accumulated.steps or accumulated.prepared)
                accumulated.seen(steps_made(parameters, self._optimizer.state, wait=is_new), coming=raised)
                beta1, beta2 = group["betas"] if "betas" in group else (group["mom"], group["sqr_mom"])
                corrected = corrections(
                    (float(beta1), float(beta2)), raised, accumulated.steps + 1,
                    (accumulated.first + raised[0], accumulated.second + raised[1]), self._debiased,
                )  # fmt: skip
            by = factors(
                self._traits, following, k=k, lr_factor=lr_factor, raised=raised, corrected=corrected,
                decoupled=group.get("decoupled_weight_decay", self._traits.decoupled),
            )  # fmt: skip
            new.append(changed_group(group, by))
        return new

    def count_steps(self, *, wait: bool = False) -> None:
        """Take in the steps that the optimizer has made, if counting has begun.

        Args:
            wait: wait for a device that holds the count; else the steps prepared are taken to have been made.
        """
        # A group added since the latest step is not counted before its first.
        for group, accumulated in zip(self._optimizer.param_groups, self._accumulated, strict=False):
            accumulated.seen(steps_made(group["params"], self._optimizer.state, wait=wait))

    def state_dict(self) -> list[list[float]]:
        """The accumulated sums, numbers only."""
        return [list(astuple(group)) for group in self._accumulated]

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Go on from `state_dict()`, with an optimizer whose own state is loaded too, before or after."""
        self._accumulated = [
            Accumulated(int(t), first, second, power_first, power_second, bool(prepared))
            for t, first, second, power_first, power_second, prepared in state
        ]
