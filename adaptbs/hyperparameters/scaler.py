"""The hyperparameters of an optimizer at the current batch, group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .bias_correction import Numbers, corrections
from .change import Change, changed, is_constant
from .gradual_rise import GradualRise
from .group_plans import GroupPlan, plans_of
from .repeated import Repeated
from .steps_seen import StepsSeen
from .traits import OptimizerTraits
from .transfer import betas_of, powers

NOT_KNOWN = (
    "optimizer %s is not known, so batch and hyperparameters are held: another batch may need another setting of it. "
    "transfer= says what follows the batch, and lets it grow: transfer=('lr',) if only the learning rate has to."
)

_NAME = "_adaptbs_hyperparameters"  # beside the optimizer's state, which is what its state_dict holds
_NO_POWERS = (1.0, 1.0)
KEPT = 8  # changes beyond the number of groups: a schedule of betas makes new ones at every step


class HyperparameterScaler:
    """Computes what the hyperparameters become, sets them for a step, and restores them.

    Example: at k = 4 the square-root rule gives the factor 2. A group of Adam with lr=1e-3, betas=(0.9, 0.999) and
    eps=1e-8 makes its step with lr=2e-3, betas=(0.9^√2, 0.999^4) and eps=5e-9, once its bias has worn off, and has its
    own values again after it.

    What an optimizer's averages have accumulated is not counted until the betas change for the first time: all steps
    before were made at k = 1. Whether groups still have seen the same steps is looked up by `count_steps`, once an
    epoch.

    Args:
        optimizer: torch's or fastai's; not an OptimWrapper, but what it wraps.
        traits: how it uses its hyperparameters: of the whole of it, or of each group.

    Attributes:
        known: True if it is known of all groups.
        is_scaled: True while the hyperparameters are changed.
        idle: True while everything is as it was found at k = 1, so that a step at k = 1 need not be scaled.
    """

    def __init__(self, optimizer: Any, traits: OptimizerTraits | Sequence[OptimizerTraits]) -> None:
        self._optimizer = optimizer
        self._traits = [traits] if isinstance(traits, OptimizerTraits) else list(traits)
        self.known = all(t.known for t in self._traits)
        self._debiases = any(t.debiases for t in self._traits)
        self._rise, self._seen, self._numbers = GradualRise(), StepsSeen(), Numbers()
        self._warned = self._held = False
        self.is_scaled, self.idle = False, True
        self._unscaled: list[tuple[Any, dict[str, Any]]] = []  # groups that are changed, and what they had
        # What is known from one step to the next, so that little is computed at each.
        self._by: tuple[Any, ...] = ()  # what the latest step was scaled by, but for the learning rate's factor
        self._raised = _NO_POWERS  # the powers of the betas that belong to it
        self._plans: list[GroupPlan] = []
        self._changes: dict[Any, Change | None] = {}  # by what `read_fixed` reads; None where that has come once
        self._alike: set[Any] = set()  # what `read_fixed` reads, of the latest step that was computed
        self._repeated: Repeated | None = None  # the latest step, if the next may be like it

    @classmethod
    def beside(
        cls, optimizer: Any, traits_of: Callable[[Any], OptimizerTraits | Sequence[OptimizerTraits]]
    ) -> HyperparameterScaler:
        """The one that belongs to this optimizer.

        It stays with it from loader to loader and from fit to fit, as what it counts is true of the optimizer's state.
        """
        if _NAME not in optimizer.__dict__:
            optimizer.__dict__[_NAME] = cls(optimizer, traits_of(optimizer))
        found: HyperparameterScaler = optimizer.__dict__[_NAME]
        found.release()
        return found

    @property
    def limited_factor(self) -> float | None:
        """The learning rate's factor in the latest step, if it is one that rises gradually; else None."""
        return self._rise.reached

    def release(self) -> None:
        """Let the hyperparameters follow the batch, whatever an earlier run did and however large its rates were."""
        self._held = False
        self._rise.begin_anew()
        self.idle = not self._seen.of_groups

    def hold(self, warn: Callable[..., None]) -> None:
        """Let nothing follow the batch, because it is not known what the optimizer does.

        Args:
            warn: called once, with the text of a warning and its values.
        """
        self._held = True
        if not self._warned:
            self._warned = True
            warn(NOT_KNOWN, type(self._optimizer).__name__)

    def scale(
        self,
        groups: Sequence[Any],
        following: Collection[str],
        *,
        k: float,
        lr_factor: float,
        longest: float = math.inf,
    ) -> None:
        """Set the groups for the step that is now to be made, until `restore`.

        Groups that are alike but for their learning rates are computed once.

        Args:
            groups: the hyperparameters of the base batch, in torch's names or fastai's.
            following: the hyperparameters that follow the batch.
            k: batch size / base batch size.
            lr_factor: the learning rate's factor; 1 where it does not follow.
            longest: the learning rate rises gradually, to at most this many times its schedule's largest. inf: at once.
        """
        # This runs at every step, so the loop over groups is written out, and what stays from step to step is kept.
        if self._held:
            return
        if longest < math.inf:
            lr_factor = self._rise.limited(groups, lr_factor, longest)
            self.idle = lr_factor == 1 and not self._seen.of_groups
        repeated, by = self._repeated, (k, following)
        self.is_scaled = True
        if repeated is not None:
            if by == self._by and repeated.set_again(groups, lr_factor):
                return
            self._repeated = None
        self._unscaled = unscaled = []
        changes, seen = self._changes, self._seen
        if by != self._by or len(changes) > KEPT + len(groups):
            self._by, self._raised = by, powers(k) if "betas" in following else _NO_POWERS
            changes.clear()

        # Take in the steps made so far, where a bias is to be corrected.
        raised = self._raised
        corrects = self._debiases and (raised != _NO_POWERS or bool(seen.of_groups))
        if corrects and seen.counted == len(groups):
            for i, steps, averages in seen.leaders:
                averages.seen(steps.read(self._optimizer.state, groups[i], wait=False), coming=raised)
        elif corrects:
            self._count(wait=False)
            for _, _, averages in seen.leaders:
                averages.seen(averages.steps, coming=raised)
        if len(self._plans) != len(groups):
            self._plans = plans_of(groups, self._traits, seen.of_groups)
            changes.clear()

        made: dict[Any, tuple[float, dict[str, Any]]] = {}  # of this step, by what `read` reads
        alike_before, self._alike = self._alike, set()
        repeats = True  # whether all that is set stays, but for the learning rate
        for group, (kind, traits, accumulated, read, read_fixed, lasts) in zip(groups, self._plans, strict=False):
            has = read(group)
            key = kind, has
            try:
                result = made.get(key)
            except TypeError:  # betas that came as a list, which may be changed in place
                key, repeats = (kind, repr(has)), False
                result = made.get(key)
            if result is None:
                corrected = _NO_POWERS
                if corrects and accumulated is not None:
                    beta1, beta2 = group["betas"] if "betas" in group else betas_of(group)
                    if type(beta1) is not float or type(beta2) is not float:
                        beta1, beta2 = self._numbers(beta1, beta2)
                    exponents = accumulated.first + raised[0], accumulated.second + raised[1]
                    debiased = traits.debiases_first, traits.debiases_second
                    corrected = corrections((beta1, beta2), raised, accumulated.steps + 1, exponents, debiased)
                alike = kind, read_fixed(group)
                self._alike.add(alike)
                change = changes.get(alike)
                if change is None and lasts and alike in changes:
                    change = changes[alike] = Change(traits, following, group, k=k, raised=raised)
                repeats = repeats and change is not None and corrected == _NO_POWERS
                if change is not None:
                    result = change.at(group, lr_factor, *corrected)
                else:  # a schedule of the weight decay has another one at every step
                    changes[alike] = None
                    result = changed(traits, following, group, k, lr_factor, raised, corrected)
                made[key] = result
            by_lr, values = result
            found = {}
            for name in values:
                found[name] = group[name]
            group.update(values)
            if by_lr != 1 and "lr" in group:
                found["lr"] = group["lr"]
                group["lr"] = found["lr"] * by_lr
            unscaled.append((group, found))

        if repeats and alike_before == self._alike and is_constant([has for _, has in made]):
            leaders = seen.leaders if corrects else []
            self._repeated = Repeated(
                unscaled, self._plans, changes, leaders, self._optimizer.state, lr_factor=lr_factor, raised=raised
            )

    def restore(self, *_: Any) -> None:
        """Give the groups back what `scale` found; also after a step that raised."""
        if self.is_scaled:
            for group, found in self._unscaled:
                group.update(found)
            self.is_scaled = False

    def count_steps(self, *, wait: bool = False) -> None:
        """Take in the steps that the optimizer has made on each group, if counting has begun.

        Args:
            wait: wait for a device that holds the count; else the steps prepared are taken to have been made.
        """
        if self._seen.of_groups:
            self._count(wait=wait)

    def _count(self, *, wait: bool) -> None:
        self._seen.count(self._optimizer.state, self._optimizer.param_groups, wait=wait)
        self._plans, self._repeated = [], None
        self.idle = False

    def state_dict(self) -> dict[str, Any]:
        """The accumulated sums of each group, the largest learning rate, and the factor reached; numbers only."""
        rise = self._rise
        return {"accumulated": self._seen.state_dict(), "largest_lr": rise.largest_lr, "reached": rise.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, with an optimizer whose own state is loaded too, before or after."""
        self._seen.load_state_dict(state["accumulated"])
        self._rise.begin_anew(state["largest_lr"], state["reached"])
        self.idle = not self._seen.of_groups and state["reached"] in (None, 1.0)
        self._repeated = None
