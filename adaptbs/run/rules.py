"""The rules of one run: its reference, its limits, and how batch size and hyperparameters follow the noise scale."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..decision import (
    Progress,
    Situation,
    counted_over_simple,
    critical_over_simple,
    decide,
    early_limit,
    efficiency_floor,
    largest_at_constant_rate,
    largest_batch_size,
    reference_batch_size,
    sample_efficiency,
)
from ..hyperparameters import LONGEST, lr_rule
from ..timing import Time
from ..types import Decision, NoiseScale, Scale
from .few_sizes import few_sizes, to_few
from .settings import Settings

T = TypeVar("T")


class ByCutSize(dict[int, T]):
    """Values by cut size: computed when first asked for, and kept until cleared.

    Args:
        compute: a method of the object that keeps this one. It is referred to weakly: a cycle of the two would keep
            model and data in memory until the next garbage collection.
    """

    def __init__(self, compute: Callable[[int], T]) -> None:
        self._compute = weakref.WeakMethod(compute)

    def __missing__(self, cut_size: int) -> T:
        compute = self._compute()
        if compute is None:
            raise RuntimeError("the run that these values belong to is gone")
        self[cut_size] = value = compute(cut_size)
        return value

    def __reduce__(self) -> Any:
        # In a pickle, as of an exported Learner with its callback, the run is over: what is known stays.
        return dict, (dict(self),)


class RunRules:
    """All that is fixed when a run is set up. All sizes are samples of an optimizer step.

    Args:
        settings: the user's arguments.
        batch_size: the size that the run starts with.
        epoch_samples: samples of an epoch.
        adaptive: True if the optimizer divides by the gradient's size (`OptimizerTraits.adaptive`).
        batches_per_step: batches that make up a step, of all ranks together.

    Attributes:
        base_batch_size: B0, the batch size that the hyperparameters are stated for.
        reference: R, the batch size whose quality the run must keep.
        critical: the critical batch size over B_simple.
        counted: the critical batch size by which progress is counted, over B_simple.
        max_batch_size: never exceeded; at most a pass.
        holds: True if hyperparameters stay as they are.
        sizes: the sizes that a step may have, samples, in rising order. Empty: it may have any.
    """

    def __init__(
        self, settings: Settings, *, batch_size: int, epoch_samples: int, adaptive: bool, batches_per_step: int
    ) -> None:
        self._adaptive, self._start, self._unit, self._settings = adaptive, batch_size, batches_per_step, settings
        self.base_batch_size = int(settings.base_batch_size or batch_size)
        self.reference = reference_batch_size(self.base_batch_size)
        self.critical = critical_over_simple(adaptive)
        self.counted = counted_over_simple(adaptive)
        largest = min(epoch_samples // 8, largest_batch_size(self.base_batch_size))
        # An even batch stays even, as timm's Mixup, which mixes halves of a batch, wants it.
        largest = largest - largest % (2 * batches_per_step) if self._is_even(batch_size) else largest
        if settings.max_batch_size:
            # A batch holds no more than a pass does, whatever size it is cut at, and its hyperparameters go by the cut.
            largest = min(settings.max_batch_size, epoch_samples // batches_per_step) * batches_per_step
        self.max_batch_size = max(batch_size, largest)
        self.holds = False
        self.sizes: tuple[int, ...] = ()
        lr_scaling = settings.lr_scaling
        if lr_scaling == "auto" and callable(settings.target):
            lr_scaling = "sqrt" if adaptive else "linear"  # a recipe for the batch has the customary factor in full
        self._longest = math.inf if adaptive or lr_scaling != "auto" else LONGEST
        self._lr_rule = lr_rule(
            lr_scaling, adaptive=adaptive, base_batch_size=self.base_batch_size, critical=self.critical
        )

    def _is_even(self, batch_size: int) -> bool:
        return batch_size % (2 * self._unit) == 0

    def expect_no_decay(self) -> None:
        """Keep SGD's batch small, because no schedule will bring its learning rate down.

        What the user has said about the batch or the learning rate goes before it.
        """
        said = self._settings.max_batch_size or callable(self._settings.target) or self._settings.lr_scaling != "auto"
        if not self._adaptive and not said:
            largest = largest_at_constant_rate(self.base_batch_size)
            self.max_batch_size = max(self._start, min(self.max_batch_size, largest))

    @property
    def may_change(self) -> bool:
        """True if the batch can come to another size than the first."""
        settings = self._settings
        is_fixed = settings.max_batch_size is not None and settings.max_batch_size * self._unit == self._start
        by_noise = not is_fixed and (self.max_batch_size > self._start or self._start > self.reference)
        return callable(settings.target) or (settings.measures and by_noise)

    @property
    def has_no_room(self) -> bool:
        """True if the noise cannot change the batch, as the first one is the largest that it may have by default."""
        return self._settings.measures and self._settings.max_batch_size is None and not self.may_change

    @property
    def changes_nothing(self) -> bool:
        """True if neither the batch nor the hyperparameters can become other than the user has them."""
        return not self.may_change and self.base_batch_size == self._start

    @property
    def by_progress(self) -> bool:
        """True if the budget is one of progress.

        That of a batch that cannot change is one of epochs as well. Where the loop breaks epochs off, only the latter
        is the fixed run's.
        """
        return self._settings.budget == "progress" and self.may_change

    @property
    def needs_noise_scale(self) -> bool:
        """True if the target decides by the noise scale; a function of the user's need not."""
        return not callable(self._settings.target)

    def hold(self) -> None:
        """Let hyperparameters stay as they are."""
        self.holds = True

    def keep_to(self, sizes: tuple[int, ...]) -> None:
        """Let steps have these sizes alone, samples; any where there is none."""
        self.sizes = sizes

    @property
    def few_sizes(self) -> tuple[int, ...]:
        """The sizes that a step of a compiled model may have, samples, in rising order."""
        return few_sizes(self._start, min(self.reference, self._start), self.max_batch_size, self._unit)

    def has_few_sizes(self) -> bool:
        """True if a step may not have every size."""
        return bool(self.sizes)

    def decide(self, now: Situation) -> Decision:
        """The next batch size, and the reason for it, before memory is asked."""
        decision = decide(now, self._settings.target)
        if decision.batch_size < now.batch_size and not self.may_change:
            decision = Decision(now.batch_size, "max_batch_size")
        return self.to_few(decision, now.batch_size)

    def to_few(self, decision: Decision, batch_size: int) -> Decision:
        """The decision, at a size that a step may have."""
        return to_few(decision, batch_size, self.sizes)

    def scale(self, cut_size: int, noise_scale: NoiseScale | None) -> Scale:
        """The change of the hyperparameters for a batch that was cut at this size."""
        if self.holds:
            return Scale()
        k, at_start = cut_size / self.base_batch_size, self._start / self.base_batch_size
        # Whoever starts at a larger batch than the base has said that its learning rate is borne.
        longest = self._longest * max(1.0, self._lr_rule(at_start, noise_scale))
        return Scale(k, self._lr_rule(k, noise_scale), longest)

    def sample_efficiency(self, cut_size: int, noise_scale: NoiseScale | None) -> float:
        """Effective samples of one sample of a batch that was cut at this size."""
        return sample_efficiency(cut_size, self.reference, noise_scale, self.counted)

    def situation(
        self,
        progress: Progress,
        *,
        noise_scale: NoiseScale | None,
        coupled: bool,
        new_measurements: int,
        batch_size: int,
        step_time: Time | None,
    ) -> Situation:
        """All that a decision is made from."""
        share, clear = progress.share, noise_scale is not None and noise_scale.high < math.inf
        required = progress.required
        by_progress = required is not None
        return Situation(
            noise_scale=noise_scale,
            coupled=coupled,
            new_measurements=new_measurements,
            batch_size=batch_size,
            reference=self.reference,
            progress=share,
            step_time=step_time,
            critical=self.critical,
            counted=self.counted if by_progress else None,
            # Of a run whose length is not known, nobody knows if it is early: only a clear estimate lets it go on.
            early_limit=early_limit(share if clear or progress.epochs else 0.0, self.base_batch_size, clear),
            floor=efficiency_floor(share, by_progress, self._adaptive),
            required=required,
            max_batch_size=self.max_batch_size,
        )


SHAPE = ("start_batch_size", "epoch_samples", "batches_per_step")


def check_shape(state: Mapping[str, Any], run: object) -> None:
    """Raise ValueError, saying what differs, unless a saved run has this one's attributes in `SHAPE`."""
    for name in SHAPE:
        if state[name] != getattr(run, name):
            raise ValueError(
                f"the saved run has {name}={state[name]}, this one {getattr(run, name)}: "
                "build it with the same dataset, batch_size, accumulation_steps and drop_last"
            )
