"""Summary of a run: when and why its batch changed, and the time that this saved by the run's own step times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ..timing import Spent, Time
from ..types import NOT_FINITE, NOTHING, noise_scale_text, samples_text
from .trade_off import THRIFTY, TradeOff
from .words import in_words, is_doubt

NO_LARGER = f"A larger fixed batch might not have done: it may need over {THRIFTY:g} times the samples of {{:,}}."
OF_SMALL_BATCHES = (
    "Nothing was measured. By halves that takes a `batch_size=` of 2 or more, with BatchNorm of 4 or more. Else a "
    "longer run, or a larger `overhead=`, measures more."
)


class Change(NamedTuple):
    """One change of the batch size.

    Attributes:
        progress: share of the run done, 0..1; None if the length of the run was not known.
        samples: samples seen.
        before, after: samples of a batch.
        noise_scale: the estimate that decided, as text; empty where there was none.
        lr_factor: factor on the learning rate from here on, by its rule.
        reason: the reason as the history records it.
    """

    progress: float | None
    samples: int
    before: int
    after: int
    noise_scale: str
    lr_factor: float
    reason: str


class Instead(NamedTuple):
    """A fixed batch that could have replaced the run's.

    Attributes:
        batch_size: samples of an optimizer step.
        samples: samples to the same progress, relative to those of the first batch size.
        seconds: seconds that it would have taken; None if they are not known.
    """

    batch_size: int
    samples: float
    seconds: float | None


@dataclass(frozen=True, repr=False)
class RunSummary:
    """The changes of a run's batch, and the time that they saved. Prints as a table.

    Attributes:
        start: batch size at the start, samples of a batch.
        global_start: the same for an optimizer step, samples.
        samples: samples seen.
        changes: the changes of the batch size, oldest first.
        reason: the reason of the latest decision, as the history records it.
        spent: what measuring and deciding have cost.
        seconds: seconds of training, measuring and deciding, by the step times of the run; None if they are not known.
        fixed_seconds: seconds that the same share of the plan would have taken at the first batch size without
            measuring; None if they are not known.
        instead: a larger fixed batch that the noise scale allows; None if there is none, or it is not known.
        notes: sentences about other ways to save time.
        doubt: why the latest estimate is not to be taken at its word; None if it is.
        bears_none: True if the lower limit of the noise scale allows no larger fixed batch.
    """

    start: int
    global_start: int
    samples: int
    changes: tuple[Change, ...]
    reason: str
    spent: Spent
    seconds: float | None
    fixed_seconds: float | None
    instead: Instead | None = None
    notes: tuple[str, ...] = ()
    bears_none: bool = False
    doubt: str | None = None

    @property
    def saved(self) -> float | None:
        """Seconds saved, below 0 if the run took longer. None if they are not known."""
        if self.seconds is None or self.fixed_seconds is None:
            return None
        return self.fixed_seconds - self.seconds

    def __repr__(self) -> str:
        told = [*self._held, *self._time, *self._unmeasured, *self._instead]
        return "\n".join([self._title, *self._table, *told, *self.notes])

    @property
    def _title(self) -> str:
        seen = f"over {self.samples:,} sample{'' if self.samples == 1 else 's'}"
        if not self.changes:
            return f"The batch size stayed {self.start:,} {seen} ({in_words(self.reason)})."
        path = f"from {self.start:,} to {self.changes[-1].after:,}"
        times = "once" if len(self.changes) == 1 else f"{len(self.changes)} times"
        return f"The batch size went {path} {seen}. It changed {times}:"

    @property
    def _table(self) -> list[str]:
        if not self.changes:
            return []
        cells = [["done", "samples", "batch size", "noise scale", "lr times", "reason"]]
        for at in self.changes:
            done = "" if at.progress is None else f"{100 * at.progress:.0f} %"
            sizes = f"{at.before:,} -> {at.after:,}"
            factor = f"{at.lr_factor:.2f}"
            cells.append([done, f"{at.samples:,}", sizes, at.noise_scale, factor, in_words(at.reason)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for *numbers, reason in cells:
            padded = [cell.rjust(width) for cell, width in zip(numbers, widths, strict=False)]
            lines.append("  ".join([*padded, reason]))
        return ["", *lines, ""]

    @property
    def _held(self) -> list[str]:
        """A doubt that holds a batch which had changed. The title says that of one that stayed."""
        return [f"At the end it was held: {self.reason}."] if self.changes and is_doubt(self.reason) else []

    @property
    def _unmeasured(self) -> list[str]:
        if self.changes or self.reason not in ("few measurements", "unresolved"):
            return []
        if self.doubt == NOT_FINITE:
            return ["Most gradients were nan or inf, and those show nothing: look at the loss and the learning rate."]
        if self.global_start == 1:
            return ["A step of one sample shows no noise. Start with `batch_size=` of 4 or more to have it measured."]
        if self.global_start < 4 and self.doubt == NOTHING:
            return ["Nothing was measured: with BatchNorm that takes a `batch_size=` of 4 or more."]
        if self.start < 4 and self.doubt == NOTHING:
            return [OF_SMALL_BATCHES]
        return ["Too little was measured to decide. A longer run, or a larger `overhead=`, measures more."]

    @property
    def _instead(self) -> list[str]:
        if self.instead is None:
            return [NO_LARGER.format(self.global_start)] if self.bears_none and self.changes else []
        size, samples, seconds = self.instead
        time = "" if seconds is None else f", in {_seconds(seconds)}"
        return [
            f"A fixed batch of {size:,} would have done too, as the noise scale predicts: with {samples:.2f} times the",
            f"samples of {self.global_start:,}{time}.",
        ]

    @property
    def _time(self) -> list[str]:
        cost = f"Measuring and deciding took {_seconds(self.spent.seconds)}"
        if self.spent.seconds < 0:  # measured steps were the quicker ones by chance
            cost = "Measuring and deciding took too little to tell"
        elif self.spent.share is not None:
            cost += f", {100 * self.spent.share:.1f} % of the time at the first batch size"
        if self.saved is None or self.seconds is None or self.fixed_seconds is None:
            unknown = ["The time saved is not known: too few steps of two batch sizes were timed."]
            return [f"{cost}.", *(unknown if self.changes else [])]
        fixed = f"{self.start:,}"
        if self.global_start != self.start:
            fixed += f" ({self.global_start:,} a step)"
        share = 100 * abs(self.saved) / self.fixed_seconds
        gain = f"{share:.0f} % of the time {'saved' if self.saved >= 0 else 'lost'}"
        return [
            f"{cost}.",
            f"By this run's own step times it took {_seconds(self.seconds)} with that, and a fixed batch of {fixed}",
            f"would have taken {_seconds(self.fixed_seconds)} for as much of the plan: {gain}.",
        ]


def summary_of_run(
    columns: Mapping[str, Sequence[Any]],
    *,
    samples: int,
    planned_samples: float,
    step_time: Time | None,
    spent: Spent,
    trade_off: TradeOff | None = None,
    notes: tuple[str, ...] = (),
) -> RunSummary:
    """Summarise a run from its history.

    Its seconds are those of training steps only, without validation and saving. n samples in batches of B are n/B steps
    of t(B) seconds.

    Args:
        columns: `history.decisions()`.
        samples: samples seen so far.
        planned_samples: samples that a fixed batch would have seen for the same share of the plan. They are fewer than
            `samples` if the run ends by its progress.
        step_time: t(B), seconds of an optimizer step of B samples; None if not known.
        spent: what measuring and deciding have cost.
        trade_off: the trade-off of the run, relative to the size it began with; None if nothing was measured.
        notes: sentences at the end.
    """
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    changes = tuple(
        Change(
            now["progress"], now["samples"], before["batch_size"], now["batch_size"],
            "" if now["low"] is None else _estimate(now["noise_scale"], now["low"], now["high"]),
            now["lr_factor"], now["reason"],
        )
        for before, now in pairwise(records)
        if now["batch_size"] != before["batch_size"]
    )  # fmt: skip
    start, global_start = records[0]["batch_size"], records[0]["global_batch_size"]
    seconds = fixed = None
    if step_time is not None and changes:
        ends = [*(record["samples"] for record in records[1:]), samples]
        stretches = [(end - r["samples"], r["global_batch_size"]) for r, end in zip(records, ends, strict=True)]
        seconds = spent.seconds + sum(n / size * step_time(size) for n, size in stretches)
        fixed = planned_samples / global_start * step_time(global_start)
    fixed = fixed or None
    instead = fixed_instead(trade_off, fixed) if trade_off is not None else None
    bears_none = trade_off is not None and trade_off.suggested == trade_off.base_batch_size
    return RunSummary(
        start, global_start, samples, changes, records[-1]["reason"], spent, seconds, fixed, instead, notes, bears_none,
        records[-1].get("doubt"),
    )  # fmt: skip


def fixed_instead(trade_off: TradeOff, fixed_seconds: float | None) -> Instead | None:
    """The fixed batch that a trade-off suggests; None if it suggests the size that the run began with.

    Args:
        trade_off: the trade-off of the run.
        fixed_seconds: seconds at the size that the run began with; None if they are not known.
    """
    row = next((row for row in trade_off.rows if row.batch_size == trade_off.suggested), None)
    if row is None or row.batch_size == trade_off.base_batch_size or row.samples.value is None:
        return None
    times = None if row.time is None else row.time.value
    seconds = None if fixed_seconds is None or times is None else fixed_seconds * times
    return Instead(row.batch_size, row.samples.value, seconds)


def _estimate(simple: float | None, low: float, high: float) -> str:
    """The estimate with its limits, as text. Decisions use it even without an upper limit, so it is always shown."""
    if simple is not None and math.isinf(high):
        return f"{samples_text(simple)} ({samples_text(low)} or more)"
    return noise_scale_text(simple, low, high)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
