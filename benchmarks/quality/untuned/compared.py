"""An adaptive run against fixed 64 on an untuned task, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.quality.compared import total_seconds
from benchmarks.quality.margins import UNTUNED
from benchmarks.quality.results import FOLDER as QUALITY
from benchmarks.quality.results import Key, Row, relative_differences, upper_limit
from benchmarks.quality.rules import Fixed, seconds_at

FOLDER = QUALITY.parent / "untuned"
FIXED, DEFAULT, BEFORE, PRIOR = "fixed 64", "adaptive 64 gpu", "before", "with a prior"  # names of rules
#: What `overhead` is multiplied by, by the name of the rule; of the last two all that is measured beside it, too.
MEASURED = {"half of overhead": 0.5, "twice": 2, "half of all measurements": 0.5, "twice as many": 2}
STARTS = {"adaptive 16 gpu": 16, "adaptive 256 gpu": 256}  # first batches by the name of the rule
RATES = (0.25, 1, 2)  # multiples of the best learning rate
LR_PARTS = {"lr_quarter": 0.25, "lr_twice": 2}  # multiples of the learning rate, by part
#: Larger fixed batches at multiples of the learning rate for 64, all else left as it is.
LARGER = (
    *(Fixed(256, by, transfer=False) for by in (1, 2, 4)),
    *(Fixed(1024, by, transfer=False) for by in (2, 4, 8)),
)
COMPUTE = "compute"  # last word of a rule's name that is run on a full device
FULL = f"adaptive 64 {COMPUTE}"  # the default there
TWICE_AS_LONG, OF_EPOCHS = "fixed 64, twice the epochs", "budget of epochs"  # names of rules
HALF_AGAIN = "half as many samples again at most"
# Tasks of the second and the third look that the default did worse on.
FAILED = ("siamese", "rating_fine_tuned", "feedback_counts")
PRIOR_TASKS = ("short", "wrong_labels", "census_nadam")


@dataclass(frozen=True)
class Pairs:
    """A rule on a task against fixed 64.

    Attributes:
        differences: ours / fixed - 1 of the error, by seed.
        margin: how much worse still counts as no worse.
        steps: the median of fixed / ours.
        times: the median of fixed / ours, by the GPU model, or that of a full device.
        batch: the mean batch of ours, samples.
    """

    differences: list[float]
    margin: float
    steps: float
    times: float
    batch: float

    @property
    def difference(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def standard_error(self) -> float:
        if not all(map(math.isfinite, self.differences)):
            return math.inf
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def limit(self) -> float:
        """One-sided upper 95 % limit of the difference."""
        return upper_limit(self.differences)

    @property
    def verdict(self) -> str:
        """"yes" where it is shown to be no worse, "**no**" where it is shown to be worse than the margin."""
        if self.limit < self.margin:
            return "yes"
        lowest = -upper_limit([-d for d in self.differences]) if math.isfinite(self.limit) else math.inf
        return "**no**" if lowest > self.margin else "unresolved"


def pairs(task: str, rule: str, found: Mapping[Key, Row]) -> Pairs | None:
    """A rule against fixed 64 on the seeds that both have been run on; None for fewer than two."""
    seeds = sorted(seed for name, r, seed in found if (name, r) == (task, rule) and (task, FIXED, seed) in found)
    if len(seeds) < 2:
        return None
    ours, fixed = ([found[task, name, seed] for seed in seeds] for name in (rule, FIXED))
    both, clock = list(zip(ours, fixed, strict=True)), "compute" if rule.endswith(COMPUTE) else "gpu"
    return Pairs(
        relative_differences([row["metric"] for row in ours], [row["metric"] for row in fixed]),
        UNTUNED[task].margin,
        statistics.median(b["steps"] / a["steps"] for a, b in both),
        statistics.median(seconds_at(clock, b["steps"], b["samples"]) / total_seconds(a, "gpu") for a, b in both),
        statistics.fmean(row["samples"] / row["steps"] for row in ours),
    )
