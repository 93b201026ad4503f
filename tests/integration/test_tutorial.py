"""docs/tutorial.ipynb was executed before it was committed, and runs as it stands, on digits that need no download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastai.basics import defaults

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_was_executed_in_order_and_without_an_error():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4, "lr_find, bs_find, the run, its schedule"
    assert NOTEBOOK.stat().st_size < 600_000


def test_its_cells_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTBS_MNIST", raising=False)
    monkeypatch.setattr(defaults, "cpus", 0)  # loads in this process, as workers take longer to start than to load
    names: dict = {}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), "tutorial.ipynb", "exec"), names)
    said = capsys.readouterr().out
    assert "scikit-learn's digits" in said and "batch size " in said and "History(" in said
    assert names["callback"].batch_size >= 64
    assert "adaptive: " in said and "fixed 64: " in said
