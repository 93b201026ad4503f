"""One record per measurement and per decision of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Measurement, NoiseScale, SquaredNorms

COLUMNS = (
    "event",  # "start", "measurement", "decision" or "out of memory"
    "samples",  # seen when the record was made
    "progress",  # share of the run, 0..1; None where the length of the run is not known
    "batch_size",  # from here on, samples; of a measurement, how many were measured
    "global_batch_size",  # samples per optimizer step
    "noise_scale",  # B_simple, samples; a decision's estimate
    "doubt",  # why that is not to be believed as a number; None where it is
    "low",  # its confidence limits, samples
    "high",
    "source",  # of a measurement: "per example", "halves" or "ranks"; why that way is its reason
    "grad_sq",  # |G|^2: of one measurement, or pooled for a decision
    "trace",  # tr(Sigma), likewise
    "lr_factor",  # what the learning rate is multiplied by
    "reason",  # why this size, or this source
)


class History:
    """Records with the columns above; None where a thing is not known. `pandas.DataFrame(history.to_dict())` works.

    Args:
        views: names of other noise scales that decisions report, each with three columns more (`view_columns`).
    """

    def __init__(self, views: Sequence[str] = ()) -> None:
        self.views = tuple(views)
        self.records: list[dict[str, Any]] = []

    @property
    def view_columns(self) -> dict[str, tuple[str, str, str]]:
        """The names of each view's columns: its noise scale, low and high."""
        return {view: view_columns(view) for view in self.views}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        return (*COLUMNS, *(name for names in self.view_columns.values() for name in names))

    def add(self, **values: Any) -> None:
        """Append a record; columns not given are None."""
        unknown = set(values) - set(self.columns)
        if unknown:
            raise ValueError(f"no such column: {sorted(unknown)}")
        self.records.append({name: values.get(name) for name in self.columns})

    def add_measurement(
        self, samples: int, progress: float | None, made: Measurement, norms: SquaredNorms | None
    ) -> None:
        """Append the record of one measurement; `norms` are its numbers as read, None where they were not finite."""
        self.add(
            event="measurement",
            samples=samples,
            progress=progress,
            batch_size=made.norms.large_size,
            source=made.source,
            reason=made.why,
            doubt=made.caveat if norms else "not finite",
            grad_sq=norms.grad_sq if norms else None,
            trace=norms.trace if norms else None,
        )

    def add_estimate(self, estimate: NoiseScale | None, views: Mapping[str, NoiseScale], **values: Any) -> None:
        """Append a record with the columns of an estimate and of its views filled in."""
        for name, view in views.items():
            values |= zip(view_columns(name), (view.simple, view.low, view.high), strict=True)
        if estimate is not None:
            fields = ("low", "high", "grad_sq", "trace")
            values |= {"noise_scale": estimate.simple, **{name: getattr(estimate, name) for name in fields}}
        self.add(**values)

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of equal length, in the order the records were made."""
        return {name: [record[name] for record in self.records] for name in self.columns}

    def decisions(self) -> dict[str, list[Any]]:
        """The same columns without the records of single measurements."""
        kept = [record for record in self.records if record["event"] != "measurement"]
        return {name: [record[name] for record in kept] for name in self.columns}

    def state_dict(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self.records]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        self.records = [{name: record.get(name) for name in self.columns} for record in state]

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        sizes = [s for s in self.decisions()["batch_size"] if s is not None]
        path = [s for i, s in enumerate(sizes) if i == 0 or s != sizes[i - 1]]
        return f"History({len(self)} records, batch size {' -> '.join(map(str, path)) or 'not started'})"


def view_columns(view: str) -> tuple[str, str, str]:
    """Noise scale, low and high of a view: "group 0" has `noise_scale_group_0`, `low_group_0`, `high_group_0`."""
    noise_scale, low, high = (f"{column}_{view.replace(' ', '_')}" for column in ("noise_scale", "low", "high"))
    return noise_scale, low, high
