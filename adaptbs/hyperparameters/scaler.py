"""An optimizer's hyperparameters at the batch of the moment, group by group."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from .bias_correction import Accumulated, correction, mass_ratio, steps_made
from .transfer import LR, OptimizerTraits, changed_group, factors, powers

log = logging.getLogger(__name__)

_NAME = "_adaptbs_hyperparameters"  # beside the optimizer's state, which is what its state_dict holds


class HyperparameterScaler:
    """What the hyperparameters of an optimizer become, and what its averages have accumulated.

    Nothing is counted until the betas change for the first time: all steps before were made at k = 1.

    Args:
        optimizer: torch's or fastai's; not an OptimWrapper, but what it wraps.
        kind: of it.
    """

    def __init__(self, optimizer: Any, kind: OptimizerTraits) -> None:
        self._optimizer, self._kind = optimizer, kind
        self._accumulated: list[Accumulated] = []  # one a group
        self._warned = False

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
        if self._kind.known or self._warned or not set(following) - LR:
            return
        self._warned = True
        log.warning(
            "optimizer %s is not known: of its hyperparameters %s the batch, the others stay as they are. "
            "transfer=('lr',) says that this is meant; if large batches make the model worse, lower max_batch_size=.",
            type(self._optimizer).__name__,
            "the learning rate and the weight decay follow" if self._kind.decoupled else "the learning rate follows",
        )

    @property
    def idle(self) -> bool:
        """Whether at k = 1 everything is as it was found."""
        return not self._accumulated

    def changed(
        self,
        groups: Sequence[Mapping[str, Any]],
        following: Collection[str],
        *,
        k: float,
        lr_factor: float,
    ) -> list[dict[str, Any]]:
        """For each group the new values of what changes, for the step that is now to be made.

        Args:
            groups: the hyperparameters of the base batch, in torch's names or fastai's.
            following: which of them follow the batch.
            k: batch size / base batch size.
            lr_factor: of the learning rate; 1 where it does not follow.
        """
        raised = powers(k if "betas" in following else 1.0)
        counts = self._kind.debiases and (raised != (1, 1) or not self.idle)
        if counts:
            self.count(start=True)
        kind, new = self._kind, []
        for i, group in enumerate(groups):
            by = factors(
                kind,
                following,
                k=k,
                lr_factor=lr_factor,
                decoupled=group.get("decoupled_weight_decay", kind.decoupled),
                corrected=self._corrected(self._accumulated[i], group, raised) if counts else (1.0, 1.0),
            )
            new.append(changed_group(group, by))
        return new

    def count(self, *, start: bool = False, wait: bool = False) -> None:
        """Take in the steps that the optimizer has made.

        Args:
            start: counting, if it has not begun, and of groups that are new.
            wait: for a device that holds the count; else the steps prepared are taken to have been made.
        """
        if not (self._accumulated or start):
            return
        state = self._optimizer.state
        for i, group in enumerate(self._optimizer.param_groups):
            is_new = i == len(self._accumulated)
            if is_new:
                self._accumulated.append(Accumulated())
            self._accumulated[i].seen(steps_made(group["params"], state, wait=wait or is_new))

    def _corrected(
        self, group: Accumulated, hypers: Mapping[str, Any], raised: tuple[float, float]
    ) -> tuple[float, float]:
        steps, *exponents = group.prepare(*raised)
        betas = hypers["betas"] if "betas" in hypers else (hypers["mom"], hypers["sqr_mom"])
        debiases = (self._kind.debiases_first, self._kind.debiases_second)
        first, second = (
            mass_ratio(float(beta), power=power, steps=steps, exponent=exponent) if debiased else 1.0
            for beta, power, exponent, debiased in zip(betas, raised, exponents, debiases, strict=True)
        )
        return correction(first, second)

    def state_dict(self) -> list[list[float]]:
        """What has been accumulated, numbers only."""
        return [list(astuple(group)) for group in self._accumulated]

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Go on from `state_dict()`, with an optimizer whose own state is loaded too, before or after."""
        self._accumulated = [
            Accumulated(int(t), first, second, power_first, power_second, bool(prepared))
            for t, first, second, power_first, power_second, prepared in state
        ]
