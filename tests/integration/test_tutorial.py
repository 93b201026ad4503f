"""The notebooks of docs/ were executed before they were committed, and run as they stand, without a download."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from fastai.data import external

DOCS = Path(__file__).parents[2] / "docs"


def code_of(notebook: str) -> list[dict]:
    return [c for c in json.loads((DOCS / notebook).read_text())["cells"] if c["cell_type"] == "code"]


def run(cells: list[dict]) -> dict:
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    return names


@pytest.fixture
def without_network(tmp_path, monkeypatch):
    def refuse(url):
        raise URLError("no network in tests")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTBS_MNIST", raising=False)
    monkeypatch.setattr(external, "untar_data", refuse)


@pytest.mark.parametrize(("notebook", "pictures"), [("tutorial.ipynb", 4), ("tutorial_torch.ipynb", 1)])
def test_it_was_executed_in_order_and_without_an_error(notebook, pictures):
    cells = code_of(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= pictures
    assert (DOCS / notebook).stat().st_size < 600_000
    said = json.dumps([output.get("text", "") for output in outputs])
    assert "Warning" not in said and "/site-packages/" not in said


def test_the_fastai_tutorial_runs(without_network, capsys):
    pytest.importorskip("sklearn")
    names = run(code_of("tutorial.ipynb"))
    said = capsys.readouterr().out
    assert "scikit-learn's digits" in said and "batch size " in said and "History(" in said
    assert names["callback"].batch_size >= 64
    assert "adaptive: " in said and "fixed 64: " in said


def test_the_fastai_tutorial_reads_mnist_as_fastai_ships_it(tmp_path, without_network, monkeypatch):
    from PIL import Image

    for part, digits in (("training", (3, 7, 7)), ("testing", (5,))):
        for i, digit in enumerate(digits):
            folder = tmp_path / part / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), 51 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setattr(external, "untar_data", lambda url: tmp_path)
    train, valid = run(code_of("tutorial.ipynb")[:1])["get_digits"]()
    images, labels = train.tensors
    assert images.shape == (3, 1, 28, 28) and labels.tolist() == [3, 7, 7] and len(valid) == 1
    assert images[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 0.4])


def test_the_torch_tutorial_runs(without_network, capsys):
    names = run(code_of("tutorial_torch.ipynb"))
    said = capsys.readouterr().out
    assert "batch size " in said and "To use: " in said and "adaptive from 32: " in said
    assert names["loader"].progress == 1 and names["loader"].batch_size > 32
