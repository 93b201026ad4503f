"""What a result was measured on, and where results lie."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, device and versions."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "fastai", "numpy")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # (fastai, which not every benchmark needs)
        return None


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json`, with the machine and the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path.write_text(json.dumps({**result, "machine": machine(), "date": now}, indent=2) + "\n")
    return path
