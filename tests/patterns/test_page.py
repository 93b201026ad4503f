"""The page of reasons names every reason to hold the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptbs.loader.lost_batch import WHICH_BATCH
from adaptbs.loader.misuse import STEP
from adaptbs.loader.row_check import ROWS
from adaptbs.loader.session import LENGTH
from adaptbs.run import RATE

PAGE = Path(__file__).parents[2] / "docs" / "reasons.md"


@pytest.mark.parametrize("reason", [RATE, STEP, ROWS, LENGTH, WHICH_BATCH])
def test_a_reason_to_hold_is_told(reason):
    assert f"| `{reason}` |" in PAGE.read_text(encoding="utf-8")
