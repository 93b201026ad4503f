"""The examples of trainers in their quick form, and the pages that say what to change."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.integration.processes import Forked, run_on_ranks, run_script

ROOT = Path(__file__).parents[3]
TRAINERS = ("accelerate", "lightning", "transformers")
EXAMPLES = sorted(path for trainer in TRAINERS for path in (ROOT / "examples").glob(f"{trainer}_*.py"))
PAGES = [page for trainer in TRAINERS if (page := ROOT / "docs" / f"{trainer}.md").exists()]


@pytest.mark.parametrize("run", [run_script, run_on_ranks], ids=["one process", "two"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, run, tmp_path):
    trainer = example.stem.split("_")[0]
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"needs {trainer}: `make trainers` runs it in .venv-trainers")
    code, out, err = Forked(tmp_path, run, example, "--samples", "1000").wait(240)
    assert code == 0, err
    assert "History(" in out
    assert "batch size now" in out


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_what_to_change_in_at_most_five_lines(page):
    shown = re.findall(r"```diff\n(.*?)```", page.read_text(), re.DOTALL)
    assert shown
    for diff in shown:
        changed = [line for line in diff.splitlines() if line.startswith(("+", "-"))]
        assert 1 <= len(changed) <= 5
