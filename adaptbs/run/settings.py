"""The keyword arguments that the loader and the fastai callback share, checked once."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real

from ..checks import check_choice, check_share, check_size
from ..decision import TARGETS
from ..hyperparameters import LR_SCALINGS, following
from ..timing import StepTime
from ..types import LRRule, Target

SOURCES = ("auto", "halves", "per_example")
METRICS = ("plain", "adam")
BUDGETS = ("progress", "epochs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See `AdaptiveDataLoader` for what each means. Raises ValueError or TypeError for a value that cannot be."""

    max_batch_size: int | None = None
    base_batch_size: int | None = None
    target: str | Target = "goodput"
    lr_scaling: str | LRRule = "auto"
    transfer: Collection[str] | None = None
    budget: str = "progress"
    max_extra: float = 1.0
    exceed_memory: bool = False
    decide_every: float = 0.05
    confidence: float = 0.9
    overhead: float = 0.05
    step_time: tuple[float, float] | None = None
    source: str = "auto"
    metric: str = "plain"
    by_group: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "base_batch_size"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        check_choice("target", self.target, tuple(TARGETS), or_function=True)
        check_choice("lr_scaling", self.lr_scaling, LR_SCALINGS, or_function=True)
        if "lr" not in self.following:
            object.__setattr__(self, "lr_scaling", "none")
        check_choice("budget", self.budget, BUDGETS)
        if isinstance(self.max_extra, bool) or not isinstance(self.max_extra, Real):
            raise TypeError(f"max_extra={self.max_extra!r}: it must be a number, a share of the planned samples")
        if not 0 <= float(self.max_extra) < math.inf:
            raise ValueError(
                f"max_extra={self.max_extra!r}: it must be 0 (no more samples than planned) or more, and finite"
            )
        check_choice("source", self.source, SOURCES)
        check_choice("metric", self.metric, METRICS)
        if self.source == "per_example" and (self.metric != "plain" or self.by_group):
            raise ValueError("metric='adam' and by_group=True are measured by halves: leave source= at 'auto'")
        check_share("decide_every", self.decide_every)
        check_share("confidence", self.confidence)
        check_share("overhead", self.overhead, or_zero=True)
        if self.step_time is not None:
            object.__setattr__(self, "step_time", _checked_step_time(self.step_time))

    @property
    def following(self) -> frozenset[str]:
        """Which hyperparameters follow the batch."""
        return following(self.transfer, self.lr_scaling)

    def check_start(self, batch_size: int, samples: int) -> None:
        """Raise ValueError if a run of `samples` samples an epoch cannot start with `batch_size`."""
        check_size("batch_size", batch_size)
        if not samples:
            raise ValueError(
                f"batch_size={batch_size}: an epoch has no batch, as where drop_last=True leaves out its only one: "
                "lower batch_size, or use a stock DataLoader"
            )
        if samples < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {samples} samples of the dataset: "
                f"start with at most {samples}, or use a stock DataLoader"
            )
        if self.max_batch_size is not None and self.max_batch_size < batch_size:
            raise ValueError(
                f"max_batch_size={self.max_batch_size} is below batch_size={batch_size}, which the run starts with: "
                "raise max_batch_size or lower batch_size"
            )


def _checked_step_time(value: tuple[float, float]) -> StepTime:
    try:
        a, b = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"step_time={value!r}: it must be a pair (a, b): a step takes a + b B seconds") from error
    if not (a >= 0 and b >= 0 and 0 < a + b < float("inf")):
        raise ValueError(f"step_time={value!r}: a and b must be seconds, not negative, and not both 0")
    return StepTime(a, b)
