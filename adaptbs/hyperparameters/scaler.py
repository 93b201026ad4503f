"""The hyperparameters of an optimizer at the current batch, group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, replace
from operator import itemgetter
from typing import Any

from .bias_correction import Accumulated, Numbers, StepCount, corrections, read_all
from .change import Change, changed, is_constant
from .learning_rate import LONGEST, RISE
from .repeated import Repeated
from .traits import OptimizerTraits
from .transfer import DECAYS, FIRST, SECOND, betas_of, powers

NOT_KNOWN = (
    "optimizer %s is not known, so batch and hyperparameters are held: another batch may need another setting of it. "
    "transfer= says what follows the batch, and lets it grow: transfer=('lr',) if only the learning rate has to."
)

_NAME = "_adaptbs_hyperparameters"  # beside the optimizer's state, which is what its state_dict holds
_NO_POWERS = (1.0, 1.0)
KEPT = 8  # changes beyond the number of groups: a schedule of betas makes new ones at every step
# All that decides what becomes of a group, but for its learning rate and betas, which may follow a schedule.
_NAMES = ("eps", *DECAYS, "decoupled_weight_decay")
_BETAS = ("betas", *FIRST, *SECOND)  # where the optimizer averages by them
# A group's learning rate, and what a scheduler of torch's says of its peak.
PEAKS = ("lr", "max_lr", "initial_lr")


class HyperparameterScaler:
    """Computes what the hyperparameters become, sets them, and counts what the optimizer's averages have accumulated.

    Nothing is counted until the betas change for the first time: all steps before were made at k = 1. Groups whose
    averages have seen the same steps are counted as one, by the first of them. Whether they still have is looked up by
    `count_steps`, once an epoch.

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
        self._largest_lr = 0.0  # of the base batch, so far or as its scheduler says; 0 where no step was limited by it
        self._reached: float | None = None  # the learning rate's factor in the latest step that was limited
        self._accumulated: list[Accumulated] = []  # one a group; groups that have seen the same steps share it
        self._leaders: list[tuple[int, Accumulated]] = []  # each of them, with its first group
        self._counts: list[StepCount] = []
        self._numbers = Numbers()
        # Each that any of the groups has: what is counted is None where no bias is to be corrected.
        self._kinds: list[tuple[OptimizerTraits, Accumulated | None]] = []
        # Of each group its kind, what it has of _NAMES and _BETAS, and of _NAMES alone, and whether the latter are
        # numbers, which nobody changes in place.
        self._plan: list[tuple[int, Callable[[Mapping[str, Any]], Any], Callable[[Mapping[str, Any]], Any], bool]] = []
        self._warned = self._held = False
        self._by: tuple[Any, ...] = ()  # what the latest step was scaled by, but for the learning rate's factor
        self._repeated: Repeated | None = None  # the latest step, if the next may be like it
        self._made: Mapping[Any, Any] = {}  # by what it was computed from, of the latest step that was computed
        self._powers = powers(1.0)
        # By a group's kind and what it has of _NAMES; None where that has come once.
        self._changes: dict[Any, Change | None] = {}
        self._unscaled: list[tuple[Any, dict[str, Any]]] = []  # groups that are changed, and what they had
        self.is_scaled, self.idle = False, True

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

    def release(self) -> None:
        """Let the hyperparameters follow the batch, whatever an earlier run did and however large its rates were."""
        self._held, self._largest_lr = False, 0.0
        self._reach(None)

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

        Groups that are alike but for their learning rates are computed once. This runs at every step, so it is short.

        Args:
            groups: the hyperparameters of the base batch, in torch's names or fastai's.
            following: the hyperparameters that follow the batch.
            k: batch size / base batch size.
            lr_factor: the learning rate's factor; 1 where it does not follow.
            longest: the learning rate rises gradually, to at most this many times its schedule's largest. inf: at once.
        """
        if self._held:
            return
        if longest < math.inf:
            lr_factor = self._limited(groups, lr_factor, longest)
        repeated, by = self._repeated, (k, following)
        self.is_scaled = True
        if repeated is not None:
            if by == self._by and repeated.set_again(groups, lr_factor):
                return
            self._repeated = None
        self._unscaled = unscaled = []
        changes = self._changes
        if by != self._by or len(changes) > KEPT + len(groups):
            self._by, self._powers = by, powers(k)
            changes.clear()
        raised = self._powers if "betas" in following else _NO_POWERS
        corrects = self._debiases and (raised != _NO_POWERS or bool(self._accumulated))
        if corrects:
            if len(self._counts) != len(groups):
                self._count_all(self._optimizer.param_groups, wait=False)
                for _, leader in self._leaders:
                    leader.seen(leader.steps, coming=raised)
            else:
                state = self._optimizer.state
                for i, leader in self._leaders:
                    leader.seen(self._counts[i].read(state, groups[i], wait=False), coming=raised)
        if len(self._plan) != len(groups):
            self._look_at(groups)
        made: dict[Any, tuple[float, dict[str, Any]]] = {}  # of this step
        repeats = True  # whether all that is set stays, but for the learning rate
        for group, (kind, getter, fixed, lasts) in zip(groups, self._plan, strict=False):
            has = getter(group)
            key = kind, has
            try:
                result = made.get(key)
            except TypeError:  # betas that came as a list, which may be changed in place
                key, repeats = (kind, repr(has)), False
                result = made.get(key)
            if result is None:
                traits, accumulated = self._kinds[kind]
                corrected = _NO_POWERS
                if corrects and accumulated is not None:
                    beta1, beta2 = group["betas"] if "betas" in group else betas_of(group)
                    if type(beta1) is not float or type(beta2) is not float:
                        beta1, beta2 = self._numbers(beta1, beta2)
                    corrected = corrections(
                        (beta1, beta2), raised, accumulated.steps + 1,
                        (accumulated.first + raised[0], accumulated.second + raised[1]),
                        (traits.debiases_first, traits.debiases_second),
                    )  # fmt: skip
                alike = kind, fixed(group)
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
        before, self._made = self._made, made
        if repeats and before.keys() == made.keys() and is_constant([key for _, key in before]):
            counted = [(i, self._counts[i], leader) for i, leader in self._leaders] if corrects else []
            follows = any(change.follows_rate for change in changes.values() if change is not None)
            self._repeated = Repeated(
                unscaled, [getter for _, getter, _, _ in self._plan], counted, self._optimizer.state,
                lr_factor=lr_factor, follows_rate=follows,
            )  # fmt: skip

    def _limited(self, groups: Sequence[Any], lr_factor: float, longest: float) -> float:
        """The factor that this step may have: it rises gradually, to `longest` times the schedule's largest rate.

        A learning rate that is a tensor is not limited, because reading it would wait for the device.
        """
        now = 0.0
        for group in groups:
            for name in PEAKS:
                rate = group.get(name, 0.0)
                if isinstance(rate, (float, int)):
                    if rate > self._largest_lr:
                        self._largest_lr = rate
                    if name == "lr" and rate > now:
                        now = rate
        if lr_factor > 1:
            if now > 0:
                lr_factor = max(1.0, min(lr_factor, longest * self._largest_lr / now))
            before = longest / LONGEST if self._reached is None else self._reached  # the start's is there at once
            lr_factor = min(lr_factor, RISE * max(1.0, before))
        self._reach(lr_factor)
        return lr_factor

    def _reach(self, lr_factor: float | None) -> None:
        self._reached, self.idle = lr_factor, not self._accumulated and lr_factor in (None, 1.0)

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
        if self._accumulated:
            self._count_all(self._optimizer.param_groups, wait=wait)

    def _look_at(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Take note of what each group is, which stays until the steps made on all of them are counted again."""
        kinds: dict[tuple[int, int], int] = {}
        self._kinds, self._plan = [], []
        self._changes.clear()
        for i, group in enumerate(groups):
            traits = self._traits[min(i, len(self._traits) - 1)]
            accumulated = self._accumulated[i] if self._accumulated and traits.debiases else None
            kind = kinds.setdefault((id(traits), id(accumulated)), len(kinds))
            if kind == len(self._kinds):
                self._kinds.append((traits, accumulated))
            names = [name for name in _NAMES if name in group]
            betas = [name for name in _BETAS if name in group and (traits.first or traits.second)]
            lasts = is_constant(tuple(group[name] for name in names))
            self._plan.append((kind, _getter([*betas, *names]), _getter(names), lasts))

    def _count_all(self, groups: Sequence[Mapping[str, Any]], *, wait: bool) -> None:
        """Take in the steps made on each group, and let those share what they have seen that have seen the same."""
        state: Mapping[Any, Any] = self._optimizer.state
        alike: dict[Any, tuple[int, Accumulated]] = {}
        self._counts = [StepCount(group["params"]) for group in groups]
        known = len(self._accumulated)
        made = read_all(self._counts, state, groups, [wait or i >= known for i in range(len(groups))])
        for i, steps in enumerate(made):
            if i >= known:
                self._accumulated.append(Accumulated())
                self.idle = False
            accumulated = self._accumulated[i]
            key = *astuple(accumulated), steps
            if key not in alike:
                alike[key] = i, replace(accumulated)
                alike[key][1].seen(steps)
            self._accumulated[i] = alike[key][1]
        self._leaders, self._plan, self._repeated = list(alike.values()), [], None

    def state_dict(self) -> dict[str, Any]:
        """The accumulated sums of each group, the largest learning rate, and the factor reached; numbers only."""
        return {
            "accumulated": [list(astuple(each)) for each in self._accumulated],
            "largest_lr": self._largest_lr, "reached": self._reached,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`, with an optimizer whose own state is loaded too, before or after."""
        self._largest_lr = state["largest_lr"]
        self._accumulated = [
            Accumulated(int(t), first, second, power_first, power_second, bool(prepared))
            for t, first, second, power_first, power_second, prepared in state["accumulated"]
        ]
        self._reach(state["reached"])
        self._counts, self._repeated = [], None  # so that the next step looks for the groups that share them


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    return itemgetter(*names) if names else len
