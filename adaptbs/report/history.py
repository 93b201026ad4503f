"""History of a run, one record for each measurement and each decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..types import LogFunction, Measurement, NoiseScale, SquaredNorms
from .log_hook import LogHook

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    "event",  # "start", "measurement", "decision" or "out of memory"
    "samples",  # samples seen when the record was made
    "progress",  # share of the run done, 0..1; None if the length of the run is not known
    "batch_size",  # samples: the batch size from this record on, or the batch measured
    "global_batch_size",  # samples per optimizer step
    "noise_scale",  # B_simple, samples, as estimated for a decision
    "doubt",  # reason not to trust the numbers of this record; None if there is none
    "low",  # lower confidence limit of B_simple, samples
    "high",  # upper confidence limit of B_simple, samples
    "source",  # how it was measured: "in step", "halves" or "ranks"; "given" to `GlobalBatch`
    "grad_sq",  # |G|^2, gradient^2: of one measurement, or pooled for a decision
    "trace",  # tr(Sigma), gradient^2: of one measurement, or pooled for a decision
    "lr_factor",  # factor on the learning rate by its rule; SGD's may be less in the step
    "reason",  # reason for a decision's batch size, or for a measurement's source
)


#: Number of records from which on measurements are thinned out. A run of a million steps makes tens of thousands.
MOST = 10_000


class History:
    """Records with the columns in `COLUMNS`; unknown values are None.

    Each decision is kept. Past 10,000 records the older measurements are thinned out.

    `history[-1]` is the latest record, `history[-10:]` a history of the last ten. `to_frame()`, `to_csv(path)` and
    `to_dict()` export all records.

    Args:
        views: names of the views whose noise scales decisions report. Each adds three columns (`view_columns`).
        log: called for each record that is added but that of the start (`log_hook.LogHook`); None for nothing.

    Attributes:
        records: the records, oldest first, as dicts.
        columns: names of all columns.
        view_columns: names of each view's three columns: its noise scale, low and high.
    """

    def __init__(self, views: Sequence[str] = (), log: LogFunction | None = None) -> None:
        self.views, self._log = tuple(views), LogHook(log)
        self.view_columns = {view: view_columns(view) for view in self.views}
        self.columns = (*COLUMNS, *(name for names in self.view_columns.values() for name in names))
        self.records: list[dict[str, Any]] = []
        self._most = MOST

    def add(self, **values: Any) -> None:
        """Append a record. Columns that are not given are None. Raises ValueError for an unknown column."""
        unknown = set(values) - set(self.columns)
        if unknown:
            raise ValueError(f"no such column: {sorted(unknown)}. The columns are {', '.join(self.columns)}")
        self.records.append(dict.fromkeys(self.columns) | values)
        self._log(self.records[-1])
        if len(self.records) > self._most:
            self._thin_out()

    def _thin_out(self) -> None:
        """Drop every second measurement of the older half. Keeps all decisions."""
        measured = [i for i, record in enumerate(self.records) if record["event"] == "measurement"]
        dropped = set(measured[1 : len(measured) // 2 : 2])
        self._most = most_records(len(self.records) - len(measured))
        self.records = [record for i, record in enumerate(self.records) if i not in dropped]

    def add_measurement(
        self, samples: int, progress: float | None, made: Measurement, norms: SquaredNorms | None
    ) -> None:
        """Append the record of a measurement. `norms` are its norms as floats, None if they were not finite."""
        self.add(
            event="measurement",
            samples=samples,
            progress=progress,
            batch_size=made.norms.large_size,
            source=made.source,
            reason=made.why,
            doubt=made.read_caveat() if norms else "not finite",
            grad_sq=norms.grad_sq if norms else None,
            trace=norms.trace if norms else None,
        )

    def add_estimate(self, estimate: NoiseScale | None, views: Mapping[str, NoiseScale], **values: Any) -> None:
        """Append a record with the columns of an estimate and of the views' estimates. `values` are all others."""
        for name, view in views.items():
            values |= zip(view_columns(name), (view.simple, view.low, view.high), strict=True)
        if estimate is not None:
            fields = ("low", "high", "grad_sq", "trace")
            values |= {"noise_scale": estimate.simple, **{name: getattr(estimate, name) for name in fields}}
        self.add(**values)

    def to_dict(self) -> dict[str, list[Any]]:
        """All records as columns of equal length, from first to last."""
        return {name: [record[name] for record in self.records] for name in self.columns}

    def decisions(self) -> dict[str, list[Any]]:
        """The same columns as `to_dict`, without the records of single measurements."""
        kept = [record for record in self.records if record["event"] != "measurement"]
        return {name: [record[name] for record in kept] for name in self.columns}

    def to_frame(self) -> DataFrame:
        """All records as a `pandas.DataFrame`, one row each. Raises ImportError if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "history.to_frame() needs pandas: pip install pandas. Without it, history.to_dict() has the columns, "
                "and history.to_csv(path) writes a file"
            ) from error
        return pandas.DataFrame(self.to_dict())

    def to_csv(self, path: str | Path) -> None:
        """Write all records to a CSV file, with a line of column names. Unknown values are empty cells."""
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.records)

    def state_dict(self) -> list[dict[str, Any]]:
        """The records, to save."""
        return [dict(record) for record in self.records]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Replace the records by saved ones. Columns that they lack are None."""
        self.records = [{name: record.get(name) for name in self.columns} for record in state]
        self._most = most_records(sum(record["event"] != "measurement" for record in self.records))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> History: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | History:
        if isinstance(at, slice):
            part = History(self.views)
            part.load_state_dict(self.records[at])
            return part
        try:
            return self.records[index(at)]
        except TypeError:
            raise TypeError(
                f"history[{at!r}]: it must be an integer or a slice, of records. The columns are in history.to_dict()"
            ) from None

    def __repr__(self) -> str:
        sizes = [s for s in self.decisions()["batch_size"] if s is not None]
        path = [s for i, s in enumerate(sizes) if i == 0 or s != sizes[i - 1]]
        return f"History({len(self)} records, batch size {' -> '.join(map(str, path)) or 'not started'})"


def most_records(kept: int) -> int:
    """Records from which on measurements are thinned out, where so many are kept whatever their number."""
    return max(MOST, 2 * kept)


def view_columns(view: str) -> tuple[str, str, str]:
    """Column names of a view. Those of "group 0" are `noise_scale_group_0`, `low_group_0` and `high_group_0`."""
    noise_scale, low, high = (f"{column}_{view.replace(' ', '_')}" for column in ("noise_scale", "low", "high"))
    return noise_scale, low, high
