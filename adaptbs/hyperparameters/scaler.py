"""The hyperparameters of an optimizer at the current batch, group by group."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from .bias_correction import Accumulated, correction, mass_ratio, steps_made
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
        if corrects:
            self.count_steps(start=True)
        new = []
        for i, group in enumerate(groups):
            corrected = self._correct(self._accumulated[i], group, raised) if corrects else _NO_POWERS
            by = factors(
                self._traits, following, k=k, lr_factor=lr_factor, raised=raised, corrected=corrected,
                decoupled=group.get("decoupled_weight_decay", self._traits.decoupled),
            )  # fmt: skip
            new.append(changed_group(group, by))
        return new

    def count_steps(self, *, start: bool = False, wait: bool = False) -> None:
        """Take in the steps that the optimizer has made.

        Args:
            start: begin to count, if that has not begun, and count groups that are new.
            wait: wait for a device that holds the count; else the steps prepared are taken to have been made.
        """
        if not (self._accumulated or start):
            return
        state = self._optimizer.state
        for i, group in enumerate(self._optimizer.param_groups):
            is_new = i == len(self._accumulated)
            if is_new:
                self._accumulated.append(Accumulated())
            self._accumulated[i].seen(steps_made(group["params"], state, wait=wait or is_new))

    def _correct(
        self, group: Accumulated, hypers: Mapping[str, Any], raised: tuple[float, float]
    ) -> tuple[float, float]:
        steps, first, second = group.prepare(*raised)
        beta1, beta2 = hypers["betas"] if "betas" in hypers else (hypers["mom"], hypers["sqr_mom"])
        traits, power1, power2 = self._traits, *raised
        ratio1 = mass_ratio(float(beta1), power1, steps, first) if traits.debiases_first else 1.0
        ratio2 = mass_ratio(float(beta2), power2, steps, second) if traits.debiases_second else 1.0
        return correction(ratio1, ratio2)

    def state_dict(self) -> list[list[float]]:
        """The accumulated sums, numbers only."""
        return [list(astuple(group)) for group in self._accumulated]

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Go on from `state_dict()`, with an optimizer whose own state is loaded too, before or after."""
        self._accumulated = [
            Accumulated(int(t), first, second, power_first, power_second, bool(prepared))
            for t, first, second, power_first, power_second, prepared in state
        ]
