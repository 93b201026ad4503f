"""One record per measurement and per decision of a run."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "event",  # "start", "measurement" or "decision"
    "samples",  # seen when the record was made
    "progress",  # share of the run, 0..1; None where the length of the run is not known
    "batch_size",  # from here on, samples
    "global_batch_size",  # samples per optimizer step
    "noise_scale",  # B_simple, samples; a decision's estimate
    "doubt",  # why that is not to be believed as a number; None where it is
    "low",  # its confidence limits, samples
    "high",
    "source",  # of a measurement: "per example" or "halves"
    "grad_sq",  # |G|^2: of one measurement, or pooled for a decision
    "trace",  # tr(Sigma), likewise
    "lr_factor",  # what the learning rate is multiplied by
    "reason",  # why this size
)


class History:
    """Records with the columns above; None where a thing is not known. `pandas.DataFrame(history.to_dict())` works."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, **values: Any) -> None:
        """Append a record; columns not given are None."""
        unknown = set(values) - set(COLUMNS)
        if unknown:
            raise ValueError(f"no such column: {sorted(unknown)}")
        self.records.append({name: values.get(name) for name in COLUMNS})

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of equal length, in the order the records were made."""
        return {name: [record[name] for record in self.records] for name in COLUMNS}

    def decisions(self) -> dict[str, list[Any]]:
        """The same columns without the records of single measurements."""
        kept = [record for record in self.records if record["event"] != "measurement"]
        return {name: [record[name] for record in kept] for name in COLUMNS}

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        sizes = [s for s in self.to_dict()["batch_size"] if s is not None]
        path = [s for i, s in enumerate(sizes) if i == 0 or s != sizes[i - 1]]
        return f"History({len(self)} records, batch size {' -> '.join(map(str, path)) or 'not started'})"
